package main

import (
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells a service manager how we are (sd_notify(3)). The zero value
// tells nobody.
type notifier struct {
	socket string
	// beat is how often it wants to hear that we live; 0 is never.
	beat time.Duration
	log  *slog.Logger
}

// newNotifier takes what the manager has told us out of the environment: our
// children are not to speak to it.
func newNotifier(log *slog.Logger) notifier {
	n := notifier{socket: os.Getenv("NOTIFY_SOCKET"), log: log}
	limit, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID") // empty: whoever runs
	if n.socket != "" && err == nil && limit > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.beat = time.Duration(limit) * time.Microsecond / 2
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return n
}

func (n notifier) tell(state string) {
	if n.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_ = conn.SetWriteDeadline(time.Now().Add(linkPatience))
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		n.log.Warn("the service manager was not told", "state", state, "err", err)
	}
}

// noName is no name of a lock.
const noName = "-"

// beat calls report at every interval, as long as the mount on dir answers. The
// helper process asks it: see janitor.
func beat(dir string, device uint32, every time.Duration, report func() error, log *slog.Logger) {
	for range time.Tick(every) {
		h, err := startHelper(dir, device)
		if err != nil {
			log.Warn("no watchdog without a helper process", "err", err)
			continue
		}
		if h.remove(noName) == nil {
			err = report()
		}
		h.end()
		if err != nil {
			return // nobody hears us any more
		}
	}
}
