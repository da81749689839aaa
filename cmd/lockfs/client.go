package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lockfs/fs"
)

// resolve is a directory as the kernel names it, also when what is mounted
// there is dead and cannot be looked at.
func resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		return filepath.Join(parent, filepath.Base(abs)), nil
	}
	return abs, nil
}

// addDir gives a command the flag --dir.
func addDir(cmd *cobra.Command) *string {
	return cmd.Flags().String("dir", "", "the mount (default: $LOCKFS_DIR, else the one lockfs that is mounted)")
}

// findMount finds the mount that a client command means: of several that are
// mounted, the one that is worked in.
func findMount(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("LOCKFS_DIR")
	}
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fail(exitUnreachable, "%s: %v", dir, err)
		}
		if _, err := os.Stat(filepath.Join(abs, "README")); err != nil {
			return "", fail(exitUnreachable, "%s is not a lockfs that answers: %v", dir, err)
		}
		return abs, nil
	}
	mounts, err := fs.Mounts()
	if err != nil {
		return "", fail(exitUnreachable, "cannot look for the mount: %v", err)
	}
	switch len(mounts) {
	case 0:
		return "", fail(exitUnreachable, "no lockfs is mounted; start one with: lockfs mount DIR")
	case 1:
		return mounts[0].Dir, nil
	}
	var dirs []string
	here, _ := os.Getwd()
	for _, m := range mounts {
		if here == m.Dir || strings.HasPrefix(here, m.Dir+"/") {
			return m.Dir, nil
		}
		dirs = append(dirs, m.Dir)
	}
	return "", fail(exitUsage, "several lockfs are mounted (%s); say which with --dir", strings.Join(dirs, ", "))
}
