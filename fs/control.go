package fs

import (
	"strings"
	"syscall"

	"lockfs/lockengine"
)

// writeTimeout renews a lease: `5m` from now, `+5m` later than it would end.
func writeTimeout(s *Server, unique uint64, l lockengine.Lock, text string) error {
	span, extend := strings.CutPrefix(strings.TrimSuffix(text, "\n"), "+")
	d, err := ParseDuration(span, s.cfg.MaxTimeout)
	if err != nil {
		return err
	}
	in, again := s.intend(unique, intent{token: l.Token, expiry: l.Expiry.Boot})
	if again && in.expiry != l.Expiry.Boot {
		return nil // this very request has renewed it
	}
	_, err = s.engine.Renew(l.Name, l.Token, d, extend, s.cfg.MaxTimeout)
	return err
}

// writeNote keeps the holder's text.
func writeNote(s *Server, _ uint64, l lockengine.Lock, text string) error {
	if len(text) > maxNote {
		return syscall.EDQUOT
	}
	return s.engine.SetNote(l.Name, l.Token, text)
}
