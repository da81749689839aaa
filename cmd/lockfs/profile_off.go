//go:build !lockfs_profile

package main

// Without -tags lockfs_profile a worker only serves: see profile_on.go.

func profiled(serve func(settings, workerLinks) error) func(settings, workerLinks) error {
	return serve
}
