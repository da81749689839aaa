package journal

import (
	"encoding/binary"
	"errors"
	"path/filepath"
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
	binary.LittleEndian.PutUint64(rec, encode(rec, id, off, kind, len(data), [][]byte{data}))
	return rec
}
