// Take takes a lock, works under it, renews it meanwhile, and releases it.
//
//	go run ./examples/go MOUNT [NAME]
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fail("usage: take MOUNT [NAME]")
	}
	name := "example"
	if len(os.Args) == 3 {
		name = os.Args[2]
	}
	if err := run(os.Args[1], name); err != nil {
		fail(err)
	}
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "take:", why)
	os.Exit(1)
}

func run(mount, name string) error {
	// The open waits in line, in a thread of its own; Go opens again by itself when a signal interrupts it.
	text, err := os.ReadFile(mount + "/take/" + name + "+30s")
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(text))
	lock := mount + "/tlock/" + name + "@" + token // exists only as long as this very lock is held
	fmt.Printf("took %s, token %s\n", name, token)
	for part := 1; part <= 3; part++ {
		time.Sleep(100 * time.Millisecond) // in place of work: each part must take less than the timeout
		if _, err := os.Stat(lock); err != nil {
			return fmt.Errorf("%s is no longer ours, stopping before harm is done: %w", name, err)
		}
		if err := os.WriteFile(lock+"/timeout", []byte("30s\n"), 0); err != nil {
			return fmt.Errorf("%s was not renewed: %w", name, err)
		}
		fmt.Printf("part %d done, renewed\n", part)
	}
	if err := os.Remove(lock); err != nil { // by token: never somebody else's
		return err
	}
	fmt.Printf("released %s\n", name)
	return nil
}
