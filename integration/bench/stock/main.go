// Stock serves package noop on go-fuse's own server: the floor for what is
// built on that.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/fs/noop"
)

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stock:", err)
		os.Exit(1)
	}
}

// serve mounts on a directory, says so, and serves until a signal.
func serve(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: stock DIR")
	}
	server, err := fuse.NewServer(noop.New(), args[0], &fuse.MountOptions{
		EnableLocks: true, DirectMount: true, FsName: "stock", Name: "stock", AllowOther: true,
		Logger: log.New(io.Discard, "", 0),
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		server.Serve()
		close(ended)
	}()
	if err := server.WaitMount(); err != nil {
		return err
	}
	fmt.Println("ready")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-signals:
		if err := server.Unmount(); err != nil {
			return err
		}
		<-ended
	case <-ended:
	}
	return nil
}
