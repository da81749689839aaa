package fs

import (
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxName bounds a lock's name, in bytes.
const MaxName = 200

// CheckName says what is wrong with the name of a lock: nil, EINVAL or
// ENAMETOOLONG.
func CheckName(name string) error {
	if name == "" || name[0] == '.' || name[0] == '-' {
		return syscall.EINVAL
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return syscall.EINVAL
		}
	}
	if len(name) > MaxName {
		return syscall.ENAMETOOLONG
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// nameUID returns the N of a name `uid-N.…`, which only that user may take.
func nameUID(name string) (uid uint32, reserved bool) {
	rest, ok := strings.CutPrefix(name, "uid-")
	digits, _, dot := strings.Cut(rest, ".")
	if !ok || !dot {
		return 0, false
	}
	// The master lock of such a name is that user's too.
	n, err := strconv.ParseUint(strings.TrimSuffix(digits, "_"), 10, 32)
	return uint32(n), err == nil
}

// ParseDuration reads a DURATION of the tree: seconds (`300`, `7.5`), or a
// sequence of numbers with units d, h, m, s (`90s`, `1h30m`, `1d`). It must be
// greater than zero and at most max (0: no bound), or the error is EINVAL.
func ParseDuration(s string, max time.Duration) (time.Duration, error) {
	d, err := ParseSpan(s)
	if err != nil || d <= 0 || max > 0 && d > max {
		return 0, syscall.EINVAL
	}
	return d, nil
}

// ParseSpan reads a DURATION that may also be zero.
func ParseSpan(s string) (time.Duration, error) {
	if s == "" || len(s) > 32 {
		return 0, syscall.EINVAL
	}
	if last := s[len(s)-1]; last >= '0' && last <= '9' || last == '.' {
		return scaled(s, time.Second)
	}
	var total time.Duration
	for left := maxSpan; s != ""; {
		end := strings.IndexAny(s, "dhms")
		if end <= 0 {
			return 0, syscall.EINVAL
		}
		unit := map[byte]time.Duration{'d': 24 * time.Hour, 'h': time.Hour, 'm': time.Minute, 's': time.Second}[s[end]]
		// Units only get smaller, each at most once: 1h30m, not 30m1h.
		if unit >= left {
			return 0, syscall.EINVAL
		}
		part, err := scaled(s[:end], unit)
		if err != nil || total+part >= maxSpan {
			return 0, syscall.EINVAL
		}
		total, left, s = total+part, unit, s[end+1:]
	}
	return total, nil
}

// maxSpan is more than any DURATION.
const maxSpan = time.Duration(1 << 62)

// scaled multiplies a plain decimal number with a unit, exactly, to the
// nanosecond. Exponents, signs, hex and NaN are no decimal numbers.
func scaled(num string, unit time.Duration) (time.Duration, error) {
	whole, fraction, _ := strings.Cut(num, ".")
	if whole+fraction == "" || strings.Trim(whole+fraction, "0123456789") != "" {
		return 0, syscall.EINVAL
	}
	n, err := strconv.ParseUint("0"+whole, 10, 64)
	f, _ := strconv.ParseFloat("0."+fraction, 64)
	if err != nil || n >= uint64(maxSpan/unit) {
		return 0, syscall.EINVAL
	}
	return time.Duration(n)*unit + time.Duration(f*float64(unit)+0.5), nil
}

// spelling is how a path names a lock; each is a directory of its own to the
// kernel.
type spelling uint8

const (
	plain   spelling = iota // NAME
	byToken                 // NAME@TOKEN
	bySpan                  // NAME+DURATION, seen by the process that made it
	byStart                 // NAME@TSTART, as Sys::Tlock's tokens are
)

// lockName is one entry of tlock/, parsed.
type lockName struct {
	name     string
	spelling spelling      // byToken also for what turns out to be byStart
	token    uint64        // of byToken
	timeout  time.Duration // of bySpan
}

// parseLockName reads NAME, NAME+DURATION or NAME@TOKEN.
func parseLockName(s string, max time.Duration) (lockName, error) {
	i := strings.IndexAny(s, "+@")
	if i < 0 {
		return lockName{name: s}, CheckName(s)
	}
	n := lockName{name: s[:i]}
	if err := CheckName(n.name); err != nil {
		return n, err
	}
	var err error
	if s[i] == '+' {
		n.spelling = bySpan
		n.timeout, err = ParseDuration(s[i+1:], max)
	} else {
		n.spelling = byToken
		n.token, err = ParseToken(s[i+1:])
	}
	return n, err
}

// ParseToken reads a token as it is printed: decimal, no sign, no leading zero.
func ParseToken(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, syscall.EINVAL
	}
	return n, nil
}

// waitName is an entry of take/ or hold/, parsed: NAME[+TIMEOUT][,wait=DURATION].
type waitName struct {
	lockName
	wait    time.Duration // how long to wait at most
	bounded bool          // wait was given
}

func parseWaitName(s string, max time.Duration) (waitName, error) {
	s, option, has := strings.Cut(s, ",")
	n, err := parseLockName(s, max)
	w := waitName{lockName: n, bounded: has}
	if err != nil {
		return w, err
	}
	if n.spelling == byToken {
		return w, syscall.EINVAL
	}
	if has {
		span, ok := strings.CutPrefix(option, "wait=")
		if !ok {
			return w, syscall.EINVAL
		}
		w.wait, err = ParseSpan(span)
	}
	return w, err
}
