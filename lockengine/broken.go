//go:build lockfs_broken

package lockengine

import (
	"fmt"
	"os"
)

// This engine makes a mistake now and then, for tests that have to find that
// out. It is built with -tags lockfs_broken.

// mistake is grant: a lock is granted that conflicts; or unlock: what is given
// back is kept.
var mistake = os.Getenv("LOCKFS_MISTAKE")

// rarely is how many chances for it come to one mistake. The second shows only
// to those who ask before the owner locks or unlocks again.
var rarely = map[string]int{"grant": 1000, "unlock": 100}

// chances is how many there were. It is guarded as the core is, of which there
// is one in a mount.
var chances int

// errs says whether to make the mistake, and tells it on standard error.
func errs(in string) bool {
	if mistake != in {
		return false
	}
	if chances++; chances%rarely[in] != 0 {
		return false
	}
	fmt.Fprintln(os.Stderr, "a wrong", mistake)
	return true
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

// unlocksNothing: the owner, which holds something on the name, is to keep it.
func (c *core) unlocksNothing() bool { return errs("unlock") }
