package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"lockfs/fs"
	"lockfs/lockengine"
	"lockfs/lockengine/journal"
)

const (
	// httpConnections is how many there can be at once. More wait to be accepted.
	httpConnections = 16
	// httpHeaders is how many bytes of a request are read; net/http adds 4096.
	httpHeaders = 4096
	// httpRetry is how long it is until a port that is taken is tried again.
	httpRetry = time.Second
	// healthLimit is how long a healthy mount may take to say so.
	healthLimit = 5 * time.Second
)

// httpAddr is the address to listen on for --http. A port alone is one of
// loopback's: what everybody may reach must be asked for.
func httpAddr(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	addr := text
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	host, port, err := net.SplitHostPort(addr)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 {
		return "", fail(exitUsage, "--http %q is no address: write a port from 1 to 65535, or ADDRESS:PORT", text)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// served is what /metrics and /healthz tell about.
type served struct {
	engine  *lockengine.Local
	journal *journal.Journal // nil: there is none
	server  *fs.Server
	durable bool // --sync always
}

// startHTTP begins to serve at addr, until the process ends. It fails if the
// first worker of a mount cannot; for the next ones the mount counts more.
func startHTTP(addr string, of served, log *slog.Logger) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil && of.server.Restarts() == 0 {
		return fmt.Errorf("--http %s: %w", addr, reason(err))
	}
	healthy := newHealth(of.check)
	figures := newFollower(of.engine)
	go figures.run(context.Background())
	web := newWeb(newHTTPHandler(newRegistry(of, healthy, figures), healthy), log)
	go serveHTTP(web, addr, listener, err, log)
	return nil
}

// reason is what went wrong, without the address that it went wrong with.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// newWeb makes a server that no client can keep busy for long.
func newWeb(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    httpHeaders,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// serveHTTP serves on listener, or as soon as there is one.
func serveHTTP(web *http.Server, addr string, listener net.Listener, err error, log *slog.Logger) {
	for told := false; ; {
		if err == nil {
			if told {
				log.Info("metrics are served again", "http", addr)
			}
			told = false
			err = web.Serve(limitConnections(listener, httpConnections))
		}
		if errors.Is(err, http.ErrServerClosed) {
			return
		}
		if !told {
			log.Warn("metrics are not served; trying again", "http", addr, "err", reason(err), "every", httpRetry)
			told = true
		}
		time.Sleep(httpRetry)
		listener, err = net.Listen("tcp", addr)
	}
}

func newHTTPHandler(metrics http.Handler, h *health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close") // else the body would be read
			http.Error(w, "no body is wanted here", http.StatusRequestEntityTooLarge)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// check returns why no new lock would be recorded, if so.
func (o *served) check() error {
	if err := o.engine.Room(); err != nil {
		return fmt.Errorf("no new lock can be recorded: %w", err)
	}
	if o.journal != nil && o.durable {
		if err := o.journal.Sync(); err != nil {
			return fmt.Errorf("no lock can be brought to the disk: %w", err)
		}
	}
	return nil
}

// health tells whether the mount can do its work.
type health struct {
	turn  chan struct{} // one check at a time, lest those that hang pile up
	check func() error
	limit time.Duration
}

func newHealth(check func() error) *health {
	return &health{make(chan struct{}, 1), check, healthLimit}
}

// err is what is wrong, nil if nothing is.
func (h *health) err() error {
	limit := time.NewTimer(h.limit)
	defer limit.Stop()
	late := fmt.Errorf("no answer within %v", h.limit)
	select {
	case h.turn <- struct{}{}:
	case <-limit.C:
		return late
	}
	result := make(chan error, 1)
	go func() {
		result <- h.check()
		<-h.turn
	}()
	select {
	case err := <-result:
		return err
	case <-limit.C:
		return late
	}
}

// ServeHTTP answers one line.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if err := h.err(); err != nil {
		http.Error(w, strings.ReplaceAll(err.Error(), "\n", "; "), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok") // a client that is gone needs no answer
}

// limitedListener accepts a connection only when there are less than a number
// of them: each one costs a descriptor, which the locks may need.
type limitedListener struct {
	net.Listener
	free chan struct{} // one for each connection
}

func limitConnections(l net.Listener, n int) net.Listener {
	return &limitedListener{l, make(chan struct{}, n)}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: conn, done: func() { <-l.free }}, nil
}

// limitedConn makes room for another one when it is closed.
type limitedConn struct {
	net.Conn
	once sync.Once
	done func()
}

func (c *limitedConn) Close() error {
	defer c.once.Do(c.done)
	return c.Conn.Close()
}
