//go:build lockfs_broken

package lockengine

// This engine makes a mistake once in a thousand times, for tests that have to
// find that out. It is built with -tags lockfs_broken and
// -ldflags "-X lockfs/lockengine.mistake=grant", or unlock.

// mistake is grant: a lock is granted that conflicts; or unlock: one that is
// given back is kept.
var mistake string

// rarely is how many chances for it come to one mistake.
const rarely = 1000

// chances is how many there were. It is guarded as the core is, of which there
// is one in a mount.
var chances int

func errs(in string) bool {
	if mistake == in {
		chances++
	}
	return mistake == in && chances%rarely == 0
}

// grantsWrongly: the request, which conflicts, is to be granted.
func (c *core) grantsWrongly(req *Request) bool {
	if !errs("grant") {
		return false
	}
	if req.Class == Named { // of which the tables can have but one
		c.endNamed(c.blockerOf(req), Released)
	}
	return true
}

func (c *core) unlocksNothing() bool { return errs("unlock") }
