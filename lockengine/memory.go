package lockengine

import "hash/maphash"

// texts gives equal texts the same memory, if they come close after each other:
// many locks are taken by few.
type texts struct {
	seed maphash.Seed
	last [64]string
}

func (t *texts) same(s string) string {
	at := &t.last[maphash.String(t.seed, s)%uint64(len(t.last))]
	if *at != s {
		*at = s
	}
	return *at
}

// sameBytes is same for a text that is not there yet.
func (t *texts) sameBytes(b []byte) string {
	at := &t.last[maphash.Bytes(t.seed, b)%uint64(len(t.last))]
	if *at != string(b) {
		*at = string(b)
	}
	return *at
}

const (
	// largeMap is how many entries a map must have had to be worth making anew.
	largeMap = 1 << 14
	// smallMap is so few that making it anew keeps nobody waiting.
	smallMap = 256
)

// Maps that may become large. Of owners and resources there is one for each class.
const (
	mapNames = iota
	mapHandles
	mapParties
	mapOwners
	mapResources = mapOwners + 4
	mapsInAll    = mapResources + 4
)

// shrinking gives back the memory of maps that have become small: a map never
// does that by itself.
type shrinking struct {
	most [mapsInAll]int // entries of each map, since it was made
	gave bool           // memory back, of which the driver does not know yet
}

// without deletes key from m, which is the map of this number, and returns it,
// or a new one with the same in it.
func without[K comparable, V any](s *shrinking, number int, m map[K]V, key K) map[K]V {
	most := &s.most[number]
	*most = max(*most, len(m))
	delete(m, key)
	if *most < largeMap || len(m) > smallMap {
		return m
	}
	*most = len(m)
	small := make(map[K]V, len(m))
	for k, v := range m {
		small[k] = v
	}
	s.gave = true
	return small
}
