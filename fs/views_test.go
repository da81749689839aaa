package fs

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func printedTable(t *testing.T, all ...lockJSON) string {
	t.Helper()
	table := newTable()
	defer table.rows.free()
	for _, j := range all {
		table.add(j)
	}
	var b bytes.Buffer
	require.NoError(t, table.print(&b))
	return b.String()
}

// Columns are as wide as what is in them, counted in characters; that of containers is there only if there are any.
func TestTable(t *testing.T) {
	all := []lockJSON{
		{Class: "record", State: "held", Mode: "shared", Start: ptr(uint64(0)), End: ptr(lastByte(1)), PID: 1, UID: 4294967294,
			Command: "größe", Seconds: 61e9, Path: "files/a b"},
		{Class: "named", State: "waiting", Mode: "exclusive", PID: 12345678, UID: 4294967294, Left: ptr(seconds(7200e9)), Path: "tlock/x"},
	}
	assert.Equal(t, ""+
		"CLASS   STATE    MODE       START  END  PID       USER        COMMAND  FOR   LEFT       PATH\n"+
		"record  held     shared     0      0    1         4294967294  größe    61 s  -          files/a b\n"+
		"named   waiting  exclusive  -      -    12345678  4294967294  -        0 s   2 h 0 min  tlock/x\n",
		printedTable(t, all...))
	all[1].Container = "3a5f"
	assert.Equal(t, ""+
		"CLASS   STATE    MODE       START  END  PID       USER        COMMAND  CONTAINER  FOR   LEFT       PATH\n"+
		"record  held     shared     0      0    1         4294967294  größe    -          61 s  -          files/a b\n"+
		"named   waiting  exclusive  -      -    12345678  4294967294  -        3a5f       0 s   2 h 0 min  tlock/x\n",
		printedTable(t, all...))
}

// A table that is longer than what is kept at hand is as one that is short.
func TestLongTable(t *testing.T) {
	j := lockJSON{Class: "named", State: "held", Mode: "exclusive", UID: 4294967294, Path: "tlock/" + strings.Repeat("x", 200)}
	short := strings.SplitAfter(printedTable(t, j), "\n")
	const many = 4 * textStep / 200
	long := printedTable(t, slices.Repeat([]lockJSON{j}, many)...)
	assert.Equal(t, short[0]+strings.Repeat(short[1], many), long)
}

// A text is the same in a handle, however long it is, and can be read from anywhere.
func TestLongText(t *testing.T) {
	for _, n := range []int{0, 1, maxRecordedText, textStep, textStep + 1, 3*textStep + 7, 3*textStep + 8} {
		want := bytes.Repeat([]byte("0123456789\n"), n/11+1)[:n]
		var text longText
		if n == 3*textStep+8 {
			text.refuse = syscall.EMFILE
		}
		for rest := range slices.Chunk(want, 10_000) {
			_, err := text.Write(rest)
			require.NoError(t, err)
		}
		h := &handle{}
		require.NoError(t, h.setText(&text), "%d", n)
		require.EqualValues(t, n, h.size())
		assert.LessOrEqual(t, cap(h.data), n+n/4+8, "memory is taken for what is kept, and no more")
		assert.Equal(t, n == textStep+1 || n == 3*textStep+7, h.long != nil)
		got, err := io.ReadAll(io.NewSectionReader(readerAt(h.readText), 0, 1<<62))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got))
		beyond, err := h.readText(make([]byte, 10), uint64(1)<<63)
		require.NoError(t, err)
		assert.Empty(t, beyond)
		if h.long != nil {
			require.NoError(t, h.long.Close())
		}
	}
}

// What was not written whole is not shown.
func TestLongTextThatFails(t *testing.T) {
	text := longText{err: syscall.ENOMEM}
	_, err := text.Write(make([]byte, textStep+1))
	require.ErrorIs(t, err, syscall.ENOMEM)
	h := &handle{}
	require.ErrorIs(t, h.setText(&text), syscall.ENOMEM)
	require.Nil(t, h.long)
}

type readerAt func(buf []byte, offset uint64) ([]byte, error)

func (r readerAt) ReadAt(buf []byte, off int64) (int, error) {
	b, err := r(buf, uint64(off))
	if err == nil && len(b) < len(buf) {
		err = io.EOF
	}
	return copy(buf, b), err
}
