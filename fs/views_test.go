package fs

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

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
		string(table(slices.Values(all))))
	text := table(slices.Values(all))
	assert.Equal(t, len(text), cap(text), "memory is taken for what is printed, and no more")
	all[1].Container = "3a5f"
	assert.Equal(t, ""+
		"CLASS   STATE    MODE       START  END  PID       USER        COMMAND  CONTAINER  FOR   LEFT       PATH\n"+
		"record  held     shared     0      0    1         4294967294  größe    -          61 s  -          files/a b\n"+
		"named   waiting  exclusive  -      -    12345678  4294967294  -        3a5f       0 s   2 h 0 min  tlock/x\n",
		string(table(slices.Values(all))))
}
