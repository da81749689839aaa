package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"lockfs/lockengine"
	"lockfs/lockengine/enginetest"
)

func TestHTTPAddr(t *testing.T) {
	for text, want := range map[string]string{
		"":               "",
		"9464":           "127.0.0.1:9464",
		":9464":          "127.0.0.1:9464",
		"0.0.0.0:9464":   "0.0.0.0:9464",
		"[::1]:9464":     "[::1]:9464",
		"localhost:9464": "localhost:9464",
	} {
		got, err := httpAddr(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, bad := range []string{"0", "65536", "-1", "http", "127.0.0.1", "127.0.0.1:", "::1", "a:b:1", ":"} {
		_, err := httpAddr(bad)
		var f *failure
		require.ErrorAs(t, err, &f, bad)
		require.Equal(t, exitUsage, f.code, bad)
		require.ErrorContains(t, err, "--http", bad)
	}
}

// countedEvents counts how often a follower is woken.
type countedEvents struct {
	*lockengine.Local
	woken atomic.Int64
}

func (c *countedEvents) OnEvents(after uint64, ready func()) lockengine.WatchID {
	return c.Local.OnEvents(after, func() {
		c.woken.Add(1)
		ready()
	})
}

// A follower is woken a few times a second however much happens, sees all that
// the log still has then, and counts the rest.
func TestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := enginetest.NewClock()
		l, err := lockengine.NewLocal(lockengine.Config{Clock: clock, EventLog: 600})
		require.NoError(t, err)
		defer l.Close()
		pair := func(held time.Duration) {
			_, err := l.Try(&lockengine.Request{Class: lockengine.Named, Name: "a"})
			require.NoError(t, err)
			clock.Pass(held)
			require.NoError(t, l.Release("a", 0, lockengine.Released))
		}
		pair(time.Hour) // before it follows
		engine := &countedEvents{Local: l}
		f := newFollower(engine)
		ctx, cancel := context.WithCancel(t.Context())
		go f.run(ctx)

		const pairs = 1000
		for range pairs {
			time.Sleep(time.Millisecond)
			pair(time.Second)
		}
		time.Sleep(time.Second)
		woken := engine.woken.Load()
		require.Positive(t, woken)
		require.LessOrEqual(t, woken, int64(time.Second/followPause)+1)
		require.Zero(t, value(t, f.missed).GetCounter().GetValue())
		held := value(t, f.held.WithLabelValues("named").(prometheus.Metric)).GetHistogram()
		require.EqualValues(t, pairs, held.GetSampleCount())
		require.InDelta(t, pairs, held.GetSampleSum(), 1e-6, "a second each")
		waited := value(t, f.waited.WithLabelValues("named").(prometheus.Metric)).GetHistogram()
		require.EqualValues(t, pairs, waited.GetSampleCount())
		require.Zero(t, waited.GetSampleSum())

		for range pairs { // at once: the log has the last 600 of 2000 events
			pair(time.Second)
		}
		time.Sleep(time.Second)
		require.EqualValues(t, 2*pairs-600, value(t, f.missed).GetCounter().GetValue())
		held = value(t, f.held.WithLabelValues("named").(prometheus.Metric)).GetHistogram()
		require.EqualValues(t, pairs+300, held.GetSampleCount())

		cancel()
		synctest.Wait()
		woken = engine.woken.Load()
		pair(time.Second)
		require.Equal(t, woken, engine.woken.Load(), "nobody follows any more")
	})
}

func value(t *testing.T, m prometheus.Metric) *dto.Metric {
	t.Helper()
	var out dto.Metric
	require.NoError(t, m.Write(&out))
	return &out
}

// A check that hangs is an answer too, and no others pile up behind it.
func TestHealthHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, checks := make(chan error), atomic.Int32{}
		h := newHealth(func() error {
			checks.Add(1)
			return <-hang
		})
		for range 3 {
			begin := time.Now()
			require.EqualError(t, h.err(), "no answer within 5s")
			require.Equal(t, healthLimit, time.Since(begin))
		}
		require.EqualValues(t, 1, checks.Load())
		hang <- nil
		synctest.Wait()
		go func() { hang <- errors.New("two\nlines") }()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, nil)
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "two; lines\n", w.Body.String())
		go func() { hang <- nil }()
		w = httptest.NewRecorder()
		h.ServeHTTP(w, nil)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "ok\n", w.Body.String())
	})
}

// pipes is a listener whose connections never leave this process.
type pipes struct{ conns chan net.Conn }

func newPipes() *pipes { return &pipes{make(chan net.Conn)} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func (p *pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// There are never more connections than may be, however often one is closed.
func TestConnectionsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := newPipes()
		l := limitConnections(in, 2)
		accepted := make(chan net.Conn, 10)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		for range 4 {
			go in.dial()
		}
		synctest.Wait()
		require.Len(t, accepted, 2)
		first := <-accepted
		require.NoError(t, first.Close())
		_ = first.Close()
		synctest.Wait()
		require.Len(t, accepted, 2)
		require.NoError(t, (<-accepted).Close())
		synctest.Wait()
		require.Len(t, accepted, 2)
		close(in.conns)
		for range 2 {
			require.NoError(t, (<-accepted).Close())
		}
	})
}

// What is too long, too slow, or not asked for as it should be is refused.
func TestHTTPRequests(t *testing.T) {
	for _, c := range []struct{ name, request, want string }{
		{"fine", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"},
		{"POST", "POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "405 Method Not Allowed"},
		{"unknown", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"},
		{"body", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", "413 Request Entity Too Large"},
		{"endless body", "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "413 Request Entity Too Large"},
		{"long header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*httpHeaders) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		{"slow header", "GET /healthz HTTP/1.1\r\nHost: x\r\n", ""},
		{"nothing", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { require.Equal(t, c.want, ask(t, c.request)) })
		})
	}
}

// ask returns the status that a request gets, "" if the connection is closed
// after a while, which is none of the clock's here.
func ask(t *testing.T, request string) string {
	in := newPipes()
	h := newHealth(func() error { return nil })
	web := newWeb(newHTTPHandler(http.NotFoundHandler(), h), slog.New(slog.DiscardHandler))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = web.Serve(in)
	}()
	conn := in.dial()
	go func() { _, _ = io.WriteString(conn, request) }()
	begin := time.Now()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.Less(t, time.Since(begin), 10*time.Second)
	_ = conn.Close()
	close(in.conns)
	<-ended
	time.Sleep(time.Second) // net/http's last goroutine has ended by then
	if err != nil {
		return ""
	}
	return response.Status
}
