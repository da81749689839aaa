package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzReplay replays a log of any bytes, behind a good header too. What is not
// refused goes on; what is refused is as it was.
func FuzzReplay(f *testing.F) {
	h := header{file{logFile, 1}, 42, false, thisBoot}
	var log []byte
	off := int64(headerSize)
	for i, kind := range []uint8{1, 49, kindSynced, kindOpened, 2, kindClosed, 3, kindSealed} {
		data := []byte("some text, longer with each record"[:16+i])
		log = append(log, recordBytes(h.id, off, kind, data)...)
		off += recordSize(len(data))
		f.Add(log, i%2 == 0)
	}
	f.Add(append(log[:len(log):len(log)], make([]byte, 4096)...), true)
	f.Add([]byte{}, true)
	f.Add(append(h.bytes(), log...), false)
	f.Fuzz(func(t *testing.T, data []byte, rebooted bool) {
		boot := thisBoot
		if rebooted {
			boot = otherBoot
		}
		for _, data := range [][]byte{data, append(h.bytes(), data...)} {
			dir := tempDir(t)
			write(t, filepath.Join(dir, "log-1"), data)
			before := contents(t, dir)
			j, got, _, err := tryOpen(dir, boot)
			if err != nil {
				var corrupt *CorruptError
				var newer *VersionError
				require.True(t, errors.As(err, &corrupt) || errors.As(err, &newer), "%v", err)
				require.Equal(t, before, contents(t, dir))
				continue
			}
			require.NoError(t, j.Close())
			goesOn(t, dir, boot, got)
		}
	})
}

func recordBytes(id uint64, off int64, kind uint8, data []byte) []byte {
	rec := make([]byte, recordSize(len(data)))
	tail := tail{id: id, end: off, mem: rec, from: off}
	tail.append(kind, data)
	return rec
}

// written is a directory of a snapshot and logs as a journal leaves it, one
// record a text, but for what was then done to it.
type written struct {
	dir     dir
	files   []file
	texts   []string // of the records of the owner, in order
	certain int      // so many of them are in the snapshot
	data    []byte
	damaged bool
}

// n is a number below limit from the data, 0 at its end.
func (w *written) n(limit int) int {
	if len(w.data) == 0 {
		return 0
	}
	b := w.data[0]
	w.data = w.data[1:]
	return int(b) % limit
}

// file writes a file with some records and one that ends it.
func (w *written) file(t *testing.T, f file, last uint8) {
	h := header{f, uint64(1000 + f.seq), w.n(2) == 0, thisBoot}
	b := h.bytes()
	put := func(kind uint8, data []byte) { b = append(b, recordBytes(h.id, int64(len(b)), kind, data)...) }
	records := w.n(5)
	for range records {
		text := fmt.Sprintf("%*d", w.n(40)+1, len(w.texts))
		kind := uint8(1 + w.n(MaxKind))
		w.texts = append(w.texts, fmt.Sprintf("%d:%s", kind, text))
		put(kind, []byte(text))
		if f.what == logFile && w.n(4) == 0 {
			p := proof{f.seq, int64(len(b))}.bytes()
			put(kindSynced, p[:])
		}
	}
	switch last {
	case kindEnd:
		put(kindEnd, binary.LittleEndian.AppendUint64(nil, uint64(records)))
		w.certain = records
	case kindSealed:
		put(kindSealed, nil)
	default:
		if w.n(2) == 0 {
			p := proof{f.seq, int64(len(b))}.bytes()
			put(kindClosed, p[:])
		}
		b = append(b, make([]byte, 8*w.n(100))...)
	}
	write(t, w.dir.path(f), b)
	w.files = append(w.files, f)
}

// damage changes a byte, cuts a file, overwrites its end, or removes it.
func (w *written) damage(t *testing.T) {
	w.damaged = true
	path := w.dir.path(w.files[w.n(len(w.files))])
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return
	}
	at := (w.n(256)<<8 | w.n(256)) % len(b)
	switch w.n(5) {
	case 0:
		b = b[:at]
	case 1:
		clear(b[at:])
	case 2:
		clear(b[at:min(at+8, len(b))])
	case 3:
		require.NoError(t, os.Remove(path))
		return
	default:
		b[at] ^= byte(1 + w.n(255))
	}
	write(t, path, b)
}

// FuzzDamage damages a snapshot and logs. What is replayed then is what was
// recorded, up to some record behind the snapshot; or it is refused, and stays
// as it is.
func FuzzDamage(f *testing.F) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 80)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		f.Add(data, uint8(seed%4))
	}
	f.Fuzz(func(t *testing.T, data []byte, damages uint8) {
		w := &written{dir: dir(tempDir(t)), data: data}
		first := uint64(1)
		if w.n(2) == 0 {
			first = 2
			w.file(t, file{snapshotFile, first}, kindEnd)
		}
		logs := uint64(1 + w.n(3))
		for seq := first; seq < first+logs-1; seq++ {
			w.file(t, file{logFile, seq}, kindSealed)
		}
		w.file(t, file{logFile, first + logs - 1}, 0)
		for range damages % 4 {
			w.damage(t)
		}
		boot := []string{thisBoot, otherBoot}[w.n(2)]
		before := contents(t, string(w.dir))
		j, got, _, err := tryOpen(string(w.dir), boot)
		if err != nil {
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.True(t, w.damaged)
			require.Equal(t, before, contents(t, string(w.dir)))
			return
		}
		require.NoError(t, j.Close())
		require.True(t, slices.Equal(w.texts[:min(len(got), len(w.texts))], got), "%q of %q", got, w.texts)
		if !w.damaged {
			require.Equal(t, len(w.texts), len(got))
		}
		if len(before) > 0 {
			require.GreaterOrEqual(t, len(got), w.certain)
		}
		goesOn(t, string(w.dir), boot, got)
	})
}
