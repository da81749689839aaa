package journal

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoSpace means that there is no room for the record on the disk.
	ErrNoSpace = errors.New("no space for the journal")
	// ErrClosed means that the journal was not yet replayed, or is closed.
	ErrClosed = errors.New("journal is not open")
	// ErrTooLong means that a record is longer than [MaxRecord].
	ErrTooLong = errors.New("record is too long for the journal")
	// ErrCompacting means that a compaction is running already.
	ErrCompacting = errors.New("journal is being compacted already")
	// ErrNotSwitched means that a snapshot was to be written before
	// [Compaction.Switch]: what changed in between would be in neither.
	ErrNotSwitched = errors.New("snapshot before the switch to the next log")
)

// CorruptError means that the journal has damage other than an unfinished end,
// so that going on could lose what was acknowledged. Nothing was changed.
type CorruptError struct {
	File   string
	Offset int64 // of the damage in File
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("journal is damaged: %s, offset %d: %s; nothing was changed: "+
		"restore the state directory from a backup, or move the journal's directory away, which loses the timed locks",
		e.File, e.Offset, e.Reason)
}

// VersionError means that a newer program wrote the journal.
type VersionError struct {
	File      string
	Got, Want uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has journal format %d, this program knows format %d: use the program that wrote it or a newer one",
		e.File, e.Got, e.Want)
}

// noSpace makes what the kernel says of a full disk an [ErrNoSpace].
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
