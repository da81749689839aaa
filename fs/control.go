package fs

import (
	"strings"
	"syscall"

	"lockfs/lockengine"
)

// writeTimeout renews a lease: `5m` from now, `+5m` later than it would end.
func writeTimeout(s *Server, l lockengine.Lock, text string) error {
	span, extend := strings.CutPrefix(strings.TrimSuffix(text, "\n"), "+")
	d, err := ParseDuration(span, s.cfg.MaxTimeout)
	if err != nil {
		return err
	}
	_, err = s.engine.Renew(l.Name, l.Token, d, extend, s.cfg.MaxTimeout)
	return err
}

// writeNote keeps the holder's text.
func writeNote(s *Server, l lockengine.Lock, text string) error {
	if len(text) > maxNote {
		return syscall.EDQUOT
	}
	return s.engine.SetNote(l.Name, l.Token, text)
}
