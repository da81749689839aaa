package journal

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// dir is the journal's directory.
type dir string

// file names a file of it.
type file struct {
	what fileType
	seq  uint64
}

const tmp = ".tmp"

var prefixes = map[fileType]string{logFile: "log-", snapshotFile: "snapshot-"}

func (f file) name() string { return prefixes[f.what] + strconv.FormatUint(f.seq, 10) }

func (d dir) path(f file) string { return filepath.Join(string(d), f.name()) }

// make makes the directory, and so that it outlives a power failure.
func (d dir) make() error {
	if _, err := os.Stat(string(d)); err == nil {
		return nil
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return dir(filepath.Dir(string(d))).sync()
}

// sync makes names made, renamed and removed last over a power failure.
func (d dir) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// files lists the journal's files by type, in order, and leftovers of files
// that were being made.
func (d dir) files() (logs, snapshots []file, leftovers []string, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, nil, nil, err
	}
	for _, e := range entries {
		f, ok := parseName(strings.TrimSuffix(e.Name(), tmp))
		switch {
		case !ok:
		case strings.HasSuffix(e.Name(), tmp):
			leftovers = append(leftovers, filepath.Join(string(d), e.Name()))
		case f.what == logFile:
			logs = append(logs, f)
		default:
			snapshots = append(snapshots, f)
		}
	}
	bySeq := func(a, b file) int { return cmp.Compare(a.seq, b.seq) }
	slices.SortFunc(logs, bySeq)
	slices.SortFunc(snapshots, bySeq)
	return logs, snapshots, leftovers, nil
}

func parseName(name string) (file, bool) {
	for what, prefix := range prefixes {
		if digits, ok := strings.CutPrefix(name, prefix); ok {
			seq, err := strconv.ParseUint(digits, 10, 63)
			f := file{what, seq}
			return f, err == nil && seq > 0 && f.name() == name
		}
	}
	return file{}, false
}

// create makes a file under a temporary name.
func (d dir) create(f file) (*os.File, error) {
	path := d.path(f) + tmp
	// Never the file of another: it may still be written to.
	if err := unlessMissing(os.Remove(path)); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// publish syncs what was made by create and gives it its name.
func (d dir) publish(f file, made *os.File) error {
	step("sync " + f.name())
	if err := made.Sync(); err != nil {
		return noSpace(err)
	}
	step("rename " + f.name())
	if err := os.Rename(d.path(f)+tmp, d.path(f)); err != nil {
		return noSpace(err)
	}
	step("sync folder for " + f.name())
	return d.sync()
}

// remove removes a file that is no longer needed, or fails to, which does no harm.
func (d dir) remove(path string) error {
	step("remove " + filepath.Base(path))
	return unlessMissing(os.Remove(path))
}

// step is called between any two changes of files, for tests of crashes there.
var step = func(string) {}
