package main

import (
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func newLs() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List every lock held and everybody who waits",
		Args:  cobra.NoArgs,
	}
	dir := addDir(cmd)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line, as view/locks.jsonl")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		mount, err := findMount(*dir)
		if err != nil {
			return err
		}
		name := "locks"
		if *asJSON {
			name = "locks.jsonl"
		}
		return copyFile(cmd.OutOrStdout(), filepath.Join(mount, "view", name))
	}
	return cmd
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fail(exitUnreachable, "%v", err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fail(exitUnreachable, "%v", err)
	}
	return nil
}
