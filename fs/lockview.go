package fs

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"lockfs/lockengine"
)

// lockView is one state of a held lock, to be rendered.
type lockView struct {
	lockengine.Lock
	s   *Server
	to  caller
	now lockengine.Instant
}

// waiting is who waits for the lock. They may be many: a row that asks is slow.
func (v *lockView) waiting() []lockengine.Waiting {
	if v.Waiters == 0 {
		return nil
	}
	return v.s.engine.Waiters(lockengine.Named, v.Name)
}

// space is the reader's pid namespace.
func (v *lockView) space() pidSpace { return v.s.host.space(v.to.tid) }

// showsToken reports whether a user may see the token of a lock of holder.
func (s *Server) showsToken(uid, holder uint32) bool {
	return s.showsAllTokens(uid) || uid == holder
}

func (s *Server) showsAllTokens(uid uint32) bool { return s.cfg.TokenMode != holderOnly || uid == 0 }

// holderOnly is the TokenMode with which only the holder, and root, see a token.
const holderOnly = 0o400

// kind is how the lock was taken: mkdir, take or hold.
func (v *lockView) kind() string { return metaValue(v.Meta, "kind") }

func (v *lockView) left() time.Duration { return max(0, time.Duration(v.Expiry.Boot-v.now.Boot)) }
func (v *lockView) age() time.Duration  { return max(0, time.Duration(v.now.Boot-v.Since.Boot)) }

// ceilSeconds rounds up to whole seconds.
func ceilSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// epochCeil is a wall clock in whole seconds, rounded up.
func epochCeil(wall int64) int64 { return ceilSeconds(time.Duration(wall)) }

func lineOf[T ~int64 | ~uint64 | ~string](v T) string { return fmt.Sprintf("%v\n", v) }

func renderToken(v *lockView) string  { return lineOf(v.Token) }
func renderStart(v *lockView) string  { return lineOf(v.Start) }
func renderExpiry(v *lockView) string { return lineOf(epochCeil(v.Expiry.Wall)) }
func renderLeft(v *lockView) string   { return lineOf(ceilSeconds(v.left())) }
func renderAge(v *lockView) string    { return lineOf(int64(v.age() / time.Second)) }

// renderTimeout prints seconds, with decimals only where there are any, so that
// it can be written back.
func renderTimeout(v *lockView) string {
	s := fmt.Sprintf("%d.%09d", v.Timeout/time.Second, v.Timeout%time.Second)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + "\n"
}

// renderNote shows the note such that it cannot drive a terminal; json has it
// to the byte.
func renderNote(v *lockView) string { return printableNote(wholeLine(v.Note)) }

// wholeLine ends a text that is not empty with a newline.
func wholeLine(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

func renderHolder(v *lockView) string {
	space := v.space()
	kind, rest, _ := strings.Cut(v.meta(space), "\n")
	return fmt.Sprintf("%s\nuid %d\nuser %s\ngid %d\npid %d\n%ssince %s\nalive %s\n",
		kind, v.Who.UID, userName(v.Who.UID), v.Who.GID, space.pid(v.Who.PID, v.Since), rest, decimal(v.Since.Wall), v.alive())
}

// alive says whether the holder's process still runs: yes, no, or unknown, of
// one that we cannot see.
func (v *lockView) alive() string {
	switch {
	case v.Who.PID == 0:
		return "unknown"
	case holderAlive(&v.Lock):
		return "yes"
	}
	return "no"
}

// meta is what was noted of the holder when it took the lock, with the number
// of its parent in the reader's namespace.
func (v *lockView) meta(space pidSpace) string {
	before, parent, found := strings.Cut(v.Meta, "\nppid ")
	if !found {
		return v.Meta
	}
	number, after, _ := strings.Cut(parent, "\n")
	pid, _ := strconv.ParseInt(number, 10, 32)
	return fmt.Sprintf("%s\nppid %d\n%s", before, space.pid(int32(pid), v.Since), after)
}

func renderWaiters(v *lockView) string {
	var b strings.Builder
	space := v.space()
	for _, w := range v.waiting() {
		fmt.Fprintf(&b, "%d %d %d %s\n", space.pid(w.Who.PID, w.Since), w.Who.UID, int64(v.waited(w)/time.Second), commandLine(w.Who.PID))
	}
	return b.String()
}

// waited is for how long a request has waited; it may have come after now.
func (v *lockView) waited(w lockengine.Waiting) time.Duration {
	return max(0, time.Duration(v.now.Boot-w.Since.Boot))
}

// renderStatus is one sentence for a person.
func renderStatus(v *lockView) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is held by %s (pid %d", v.Name, userName(v.Who.UID), v.space().pid(v.Who.PID, v.Since))
	if c := metaValue(v.Meta, "command"); c != "" {
		fmt.Fprintf(&b, ", %s", c)
	}
	if c := metaValue(v.Meta, "container"); c != "" {
		fmt.Fprintf(&b, ", in container %s", c)
	}
	fmt.Fprintf(&b, ") since %s", time.Unix(0, v.Since.Wall).Format("2006-01-02 15:04:05"))
	if v.Timeout == 0 {
		b.WriteString(", until it lets go")
	} else {
		fmt.Fprintf(&b, ", for %s more", people(v.left()))
	}
	switch n := v.Waiters; n {
	case 0:
		b.WriteString("; nobody waits.\n")
	case 1:
		b.WriteString("; 1 waits.\n")
	default:
		fmt.Fprintf(&b, "; %d wait.\n", n)
	}
	return b.String()
}

// people prints a span as a person would say it, rounded up to seconds.
func people(d time.Duration) string {
	s := ceilSeconds(d)
	switch {
	case s < 120:
		return fmt.Sprintf("%d s", s)
	case s < 2*3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%d days %d h", s/86400, s%86400/3600)
}

// decimal prints nanoseconds as seconds with six decimals.
func decimal(ns int64) string {
	return fmt.Sprintf("%d.%06d", ns/int64(time.Second), ns%int64(time.Second)/1000)
}

// maxNote bounds a note, in bytes.
const maxNote = 1024
