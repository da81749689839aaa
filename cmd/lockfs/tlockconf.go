package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// tlockOptions are the flags of lockfs tlock; empty ones were not given.
type tlockOptions struct{ conf, dir, marker, owner, patience string }

// tlockConf is Sys::Tlock's configuration, resolved.
type tlockConf struct {
	dir, marker string
	owner       int // uid; -1: who takes it
	patience    time.Duration
}

const (
	tlockConfFile   = "/etc/tlock.conf"
	defaultMarker   = "tlock"
	defaultPatience = "0.25"
)

// resolve looks at each setting in order: flag, file named by a flag,
// environment, file named by the environment or /etc/tlock.conf, default.
func (o tlockOptions) resolve() (tlockConf, error) {
	env := func(name string) string { return os.Getenv("tlock_" + name) }
	layers := []map[string]string{{"dir": o.dir, "marker": o.marker, "owner": o.owner, "patience": o.patience}}
	add := func(path string) error {
		file, err := readTlockConf(path)
		layers = append(layers, file)
		return err
	}
	if o.conf != "" {
		if err := add(o.conf); err != nil {
			return tlockConf{}, err
		}
	}
	layers = append(layers, map[string]string{"dir": env("dir"), "marker": env("marker"), "owner": env("owner"), "patience": env("patience")})
	if path := env("conf"); path != "" {
		if err := add(path); err != nil {
			return tlockConf{}, err
		}
	}
	if _, err := os.Stat(tlockConfFile); err == nil {
		if err := add(tlockConfFile); err != nil {
			return tlockConf{}, err
		}
	}
	layers = append(layers, map[string]string{"marker": defaultMarker, "owner": "-1", "patience": defaultPatience})
	get := func(key string) string {
		for _, l := range layers {
			if l[key] != "" {
				return l[key]
			}
		}
		return ""
	}
	return checkTlockConf(get("dir"), get("marker"), get("owner"), get("patience"))
}

var markerPattern = regexp.MustCompile(`^[a-zA-Z]([a-zA-Z0-9_-]*[a-zA-Z0-9])?$`)

func checkTlockConf(dir, marker, owner, patience string) (tlockConf, error) {
	c := tlockConf{dir: dir, marker: marker}
	err := checkMarker(marker)
	if err != nil {
		return c, fail(exitUsage, "tlock: %v", err)
	}
	if c.patience, err = parsePatience(patience); err != nil {
		return c, fail(exitUsage, "tlock: %v", err)
	}
	if c.owner, err = parseOwner(owner); err != nil {
		return c, fail(exitUsage, "tlock: %v", err)
	}
	if dir == "" {
		mount, err := findMount("")
		c.dir = filepath.Join(mount, "tlock")
		return c, err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return c, fail(exitUnreachable, "tlock: lock directory %q is not there", dir)
	}
	return c, nil
}

func checkMarker(marker string) error {
	if !markerPattern.MatchString(marker) {
		return fmt.Errorf("marker %q is not allowed: use letters, digits, minus and underscore, beginning with a letter and ending with a letter or digit", marker)
	}
	return nil
}

// checkTlockValue says what is wrong with the value of a directive.
func checkTlockValue(key, value string) (err error) {
	switch key {
	case "marker":
		err = checkMarker(value)
	case "patience":
		_, err = parsePatience(value)
	case "owner":
		_, err = parseOwner(value)
	}
	return err
}

var patiencePattern = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

func parsePatience(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(s, 64)
	patience := time.Duration(f * float64(time.Second))
	if err != nil || !patiencePattern.MatchString(s) || f > 1e9 || patience <= 0 {
		return 0, fmt.Errorf("patience %q is not a number of seconds greater than zero", s)
	}
	return patience, nil
}

func parseOwner(s string) (int, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= -1 && n < 1<<32-1 {
		return int(n), nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, fmt.Errorf("owner %q is neither a user's name nor a number", s)
	}
	return strconv.Atoi(u.Uid)
}

// readTlockConf reads a tlock.conf: first the line `tlock 0` or `tlock 1`,
// then directives with a value, comments and empty lines.
func readTlockConf(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, fail(exitUsage, "tlock: configuration file %s: %v", path, err)
	}
	conf, err := parseTlockConf(string(b))
	if err != nil {
		return nil, fail(exitUsage, "tlock: %s: %v", path, err)
	}
	return conf, nil
}

func parseTlockConf(text string) (map[string]string, error) {
	conf := map[string]string{}
	lines := strings.Split(text, "\n")
	head := strings.Fields(lines[0])
	if len(head) != 2 || head[0] != "tlock" {
		return nil, fmt.Errorf("line 1: %q; expected `tlock 0` or `tlock 1`", lines[0])
	}
	if head[1] != "0" && head[1] != "1" {
		return nil, fmt.Errorf("line 1: version %q is not known; expected `tlock 0` or `tlock 1`", head[1])
	}
	for i, line := range lines[1:] {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, value, _ := strings.Cut(line, " ")
		if tab, rest, ok := strings.Cut(line, "\t"); ok && len(tab) < len(key) {
			key, value = tab, rest
		}
		if key != "dir" && key != "marker" && key != "owner" && key != "patience" {
			return nil, fmt.Errorf("line %d: directive %q is not known; expected dir, marker, owner or patience", i+2, key)
		}
		if value = strings.TrimSpace(value); value == "" {
			return nil, fmt.Errorf("line %d: directive %s has no value", i+2, key)
		}
		if err := checkTlockValue(key, value); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+2, err)
		}
		if conf[key] == "" {
			conf[key] = value
		}
	}
	return conf, nil
}
