package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/fs"
	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

// workerEnv has the settings of a worker, and makes us one. It is also what
// finds the worker of a mount (see findMounter).
const workerEnv = "LOCKFS_WORKER"

// The descriptors that a worker inherits.
const (
	workerFuse  = 3 // the connection to the kernel
	workerLink  = 4 // to the supervisor
	workerState = 5 // the locked files of lockState
	workerEnd   = 7
)

// workerLinks are a worker's connections.
type workerLinks struct {
	fuse  int
	super *supervisorLink
}

// workerMain is a worker: it runs serve for a supervisor.
func workerMain(text string, serve func(settings, workerLinks) error) error {
	for fd := workerFuse; fd < workerEnd; fd++ {
		unix.CloseOnExec(fd)
	}
	// A terminal's Ctrl-C and a service manager's SIGTERM go to both of us: the
	// supervisor unmounts.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	os.Unsetenv(workerEnv)
	setProcessName("lockfs-worker")
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fail(exitUsage, "%s is for lockfs itself: %v", workerEnv, err)
	}
	super, err := newSupervisorLink(workerLink)
	if err != nil {
		return fail(exitUnreachable, "%v", err)
	}
	raiseFileLimit()
	if err := serve(s, workerLinks{workerFuse, super}); err != nil {
		super.failed(err)
		return fail(exitUnreachable, "%v", err)
	}
	return nil
}

// serve serves the mount until it is unmounted.
func serve(s settings, w workerLinks) error {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) // the reader of the device keeps one while it waits
	debug.SetGCPercent(50)                        // a million locks are to fit: memory is dearer than the little that is thrown away
	log := newLog()
	boot, err := bootID()
	if err != nil {
		return err
	}
	kept, err := openJournal(s, boot, log)
	if err != nil {
		return err
	}
	server, engine, err := newServer(s, w, kept, boot, log)
	if err != nil {
		return err
	}
	if s.HTTP != "" {
		if err := startHTTP(s.HTTP, served{engine, kept, server, s.Sync == syncAlways}, log); err != nil {
			return err
		}
	}
	if s.Beat > 0 {
		go beat(s.Dir, s.Device, s.Beat, w.super.beat, log)
	}
	ended := make(chan error, 1)
	go func() {
		err := server.Serve()
		if kept != nil {
			if err := kept.Close(); err != nil {
				log.Warn("the journal was not closed in good order, but what was granted is in it", "err", err)
			}
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-w.super.orphaned:
		return serveAlone(s.Dir, ended, log)
	}
}

// openJournal opens the mount's journal, nil if it is to have none.
func openJournal(s settings, boot string, log *slog.Logger) (*journal.Journal, error) {
	if s.NoJournal {
		return nil, nil
	}
	return journal.Open(filepath.Join(s.State, "journal"), journal.Options{Boot: boot, Sync: s.Sync == syncAlways, Log: log})
}

// newServer makes a server that is ready to go on where the journal ends, and its engine.
func newServer(s settings, w workerLinks, kept *journal.Journal, boot string, log *slog.Logger) (*fs.Server, *lockengine.Local, error) {
	durable := s.Sync == syncAlways
	engineConfig := lockengine.Config{Classify: fs.Classify, SyncGrants: durable, Logger: log, MaxPerUser: s.MaxPerUser, LimitRoot: s.LimitRoot}
	if kept != nil {
		engineConfig.Log, engineConfig.Boot = kept, boot
	}
	engine, err := lockengine.NewLocal(engineConfig)
	if err != nil {
		return nil, nil, err
	}
	server, err := fs.NewServer(fs.Config{
		FD: w.fuse, Engine: engine, Now: engine.Now, Session: 1, Files: s.Files, AllowOther: s.AllowOther,
		DefaultTimeout: s.DefaultTimeout, MaxTimeout: s.MaxTimeout, ViewMode: s.ViewMode, Log: log,
		TokenMode: s.TokenMode, MaxPerUser: s.MaxPerUser, LimitRoot: s.LimitRoot,
		Ready: func() {
			if err := w.super.ready(); err != nil {
				log.Warn("no supervisor hears that the mount is ready", "err", err)
			}
		},
		Journal: kept, Instance: s.Instance, Store: w.super, Janitor: newJanitor(s.Dir, s.Device), Durable: durable,
	})
	return server, engine, err
}

// bootID is an id of this boot of the machine (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// serveAlone goes on without a supervisor, whose signals are now ours.
func serveAlone(dir string, ended <-chan error, log *slog.Logger) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	log.Warn("the supervisor is gone; serving on, but a crash would now end the mount: "+
		"unmount and mount again to be protected from that", "dir", dir, "pid", os.Getpid())
	select {
	case err := <-ended:
		return err
	case <-signals:
	}
	signal.Reset(syscall.SIGINT, syscall.SIGTERM) // a second one ends us at once
	unmountPatiently(dir)
	select {
	case err := <-ended:
		return err
	case <-time.After(endPatience): // it was busy: its users get ENOTCONN
		return nil
	}
}
