//go:build lockfs_profile

package main

import (
	"errors"
	"os"
	"runtime/pprof"
)

// Built with -tags lockfs_profile, a worker writes to the file that
// LOCKFS_PROFILE names where it spends its time until it is unmounted. From that
// lockfs is then compiled: see make profile.

func profiled(serve func(settings, workerLinks) error) func(settings, workerLinks) error {
	return func(s settings, w workerLinks) (err error) {
		f, err := os.Create(os.Getenv("LOCKFS_PROFILE"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return serve(s, w)
	}
}
