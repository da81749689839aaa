package integration

import (
	"fmt"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// The models say what locks are, each for one object, in the plainest way: they know of no queue and no wait. A call
// that waits is one that can only happen when nothing is in its way; one that is refused can only happen when something
// is. A client that is killed makes one more call, its death, which gives back what goes with the process; what it had
// asked for and was never answered may have happened before that, and after it does nothing.

// linearModels are the models of each kind of object.
var linearModels = map[string]porcupine.Model{
	"fcntl": fileModel, "ofd": fileModel, "flock": fileModel, "named": namedModel,
}

var fileModel = porcupine.Model{
	Init: func() any { return fileState{} },
	Step: func(state, input, output any) (bool, any) {
		s, c := state.(fileState), input.(linearCall)
		if s.dead.has(c.Client) {
			return output == nil, s
		}
		ok := s.step(c, output)
		return ok, s
	},
	DescribeOperation: describeCall,
	DescribeState:     func(state any) string { return state.(fileState).String() },
}

var namedModel = porcupine.Model{
	Init: func() any { return namedState{} },
	Step: func(state, input, output any) (bool, any) {
		s, c := state.(namedState), input.(linearCall)
		if s.dead.has(c.Client) {
			return output == nil, s
		}
		ok := s.step(c, output)
		return ok, s
	},
	DescribeOperation: describeCall,
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// A bitSet is a set of clients, or of owners of locks.
type bitSet uint64

func (s bitSet) has(i int) bool { return s&(1<<i) != 0 }

// maxClients is how many clients a model can tell apart.
const maxClients = 64 / ownersOfClient

func ownerOf(client, owner int) bitSet { return 1 << (client*ownersOfClient + owner) }

// A fileState is who has each byte of a file locked. A flock is on byte 0.
type fileState struct {
	shared, exclusive [linearBytes]bitSet
	dead              bitSet
}

// step changes the state as the call does; false: it cannot have had this answer now. Without an answer the call may
// have been done.
func (s *fileState) step(c linearCall, output any) bool {
	answer, answered := output.(linearAnswer)
	owner := ownerOf(c.Client, c.Owner)
	switch c.Op {
	case "lock":
		free := s.free(c, owner)
		if c.Converts && s.holds(owner) || answered && answer.OK != free {
			return false
		}
		if free {
			s.set(c, owner)
		}
		return true
	case "unlock":
		s.drop(c.Start, c.End, owner)
	case "test":
		return !answered || s.tested(c, owner, answer)
	case "drop":
		s.drop(0, linearBytes, owner)
	case "death":
		s.drop(0, linearBytes, allOwnersOf(c.Client))
		s.dead |= 1 << c.Client
	}
	return true
}

func allOwnersOf(client int) (all bitSet) {
	for i := range ownersOfClient {
		all |= ownerOf(client, i)
	}
	return all
}

// free: no lock of another owner is in the way.
func (s *fileState) free(c linearCall, owner bitSet) bool {
	for i := c.Start; i < c.End; i++ {
		if s.exclusive[i]&^owner != 0 || c.Mode == exclusive && s.shared[i]&^owner != 0 {
			return false
		}
	}
	return true
}

func (s *fileState) holds(owner bitSet) bool {
	for i := range linearBytes {
		if (s.shared[i]|s.exclusive[i])&owner != 0 {
			return true
		}
	}
	return false
}

func (s *fileState) set(c linearCall, owner bitSet) {
	s.drop(c.Start, c.End, owner)
	locks := &s.shared
	if c.Mode == exclusive {
		locks = &s.exclusive
	}
	for i := c.Start; i < c.End; i++ {
		locks[i] |= owner
	}
}

func (s *fileState) drop(start, end int, owners bitSet) {
	for i := start; i < end; i++ {
		s.shared[i] &^= owners
		s.exclusive[i] &^= owners
	}
}

// tested: a lock that is in the way was told, as a whole, or that there is none. The pid is that of the process whose
// lock it is or, for an open file description, of the one that took it, or it is not told.
func (s *fileState) tested(c linearCall, asker bitSet, answer linearAnswer) bool {
	if answer.OK {
		return s.free(c, asker)
	}
	if answer.Start >= c.End || answer.End <= c.Start || c.Mode == shared && answer.Mode == shared {
		return false
	}
	locks := &s.shared
	if answer.Mode == exclusive {
		locks = &s.exclusive
	}
	for i := range maxClients * ownersOfClient {
		told := answer.PID == 0 || answer.PID == i/ownersOfClient+1
		if owner := bitSet(1) << i; told && owner != asker && isRun(locks, owner, answer.Start, answer.End) {
			return true
		}
	}
	return false
}

// isRun: all of these bytes are the owner's, and the ones beside them are not.
func isRun(locks *[linearBytes]bitSet, owner bitSet, start, end int) bool {
	if start < 0 || end > linearBytes {
		return false
	}
	for i := max(start-1, 0); i < min(end+1, linearBytes); i++ {
		if inside := i >= start && i < end; inside != (locks[i]&owner != 0) {
			return false
		}
	}
	return true
}

func (s fileState) String() (text string) {
	for i := range linearBytes {
		text += fmt.Sprintf("byte %d:", i)
		for j := range maxClients * ownersOfClient {
			for mode, locks := range map[lockMode]bitSet{shared: s.shared[i], exclusive: s.exclusive[i]} {
				if locks.has(j) {
					text += fmt.Sprintf(" %s %d/%d", modeName(mode), j/ownersOfClient, j%ownersOfClient)
				}
			}
		}
		text += "; "
	}
	return text
}

// A namedState is who has a named lock.
type namedState struct {
	grant    uint64 // number of the call that took it; 0: it is free
	kind     string // mkdir, take or hold
	client   int    // who took it
	detached bool   // a take whose token was read
	token    uint64 // 0: nobody has read it yet
	last     uint64 // the highest token that was read
	dead     bitSet
}

func (s *namedState) step(c linearCall, output any) bool {
	answer, answered := output.(linearAnswer)
	says := func(ok bool) bool { return !answered || answer.OK == ok }
	held := s.grant != 0
	exact := held && s.token == c.Token && c.Token != 0
	switch c.Op {
	case "mkdir", "take", "hold":
		if !held {
			s.grant, s.kind, s.client = c.Grant, c.Op, c.Client
		}
		return says(!held)
	case "token":
		return says(held) && (!held || !answered || s.reads(answer.Token))
	case "read take", "read hold":
		return s.readHandle(c, answer, answered)
	case "exists":
		return says(held)
	case "is mine":
		return says(exact)
	case "renew":
		return says(exact && s.kind != "hold") // a hold has no timeout
	case "release":
		if exact {
			s.end()
		}
		return says(exact)
	case "release any":
		s.end()
		return says(held)
	case "close":
		if held && s.grant == c.Grant {
			s.closeHandle()
		}
	case "death":
		if held && s.client == c.Client {
			s.closeHandle()
		}
		s.dead |= 1 << c.Client
	}
	return true
}

func (s *namedState) end() { *s = namedState{last: s.last, dead: s.dead} }

// closeHandle ends what lives by its handle.
func (s *namedState) closeHandle() {
	if s.kind == "hold" || s.kind == "take" && !s.detached {
		s.end()
	}
}

// reads: tokens only grow, and each lock has one.
func (s *namedState) reads(token uint64) bool {
	if s.token != 0 {
		return s.token == token
	}
	grows := token > s.last
	s.token, s.last = token, token
	return grows
}

// readHandle reads the token from what open gave. When the lock has ended, a hold says so; a take does not.
func (s *namedState) readHandle(c linearCall, answer linearAnswer, answered bool) bool {
	if s.grant != c.Grant {
		return !answered || answer.OK == (c.Op == "read take")
	}
	s.detached = s.kind == "take"
	return !answered || answer.OK && s.reads(answer.Token)
}

func describeCall(input, output any) string {
	text := fmt.Sprintf("%+v", input.(linearCall))
	if output == nil {
		return text + " unanswered"
	}
	return fmt.Sprintf("%s: %+v", text, output)
}

// TestLinearModels: the models themselves, by histories that are as they should be, and ones that are not.
func TestLinearModels(t *testing.T) {
	call := func(client int, op string, more ...func(*linearCall)) linearCall {
		c := linearCall{Client: client, Op: op, Mode: exclusive, End: 1}
		for _, f := range more {
			f(&c)
		}
		return c
	}
	grant := func(n uint64) func(*linearCall) { return func(c *linearCall) { c.Grant = n } }
	token := func(n uint64) func(*linearCall) { return func(c *linearCall) { c.Token = n } }
	sharing := func(c *linearCall) { c.Mode = shared }
	flocks := func(c *linearCall) { c.Owner = firstOwner }
	converts := func(c *linearCall) { c.Owner, c.Converts = firstOwner, true }
	yes, no := linearAnswer{OK: true}, linearAnswer{}
	inTheWay := func(pid int) linearAnswer { return linearAnswer{Mode: exclusive, End: 1, PID: pid} }
	read := func(n uint64) linearAnswer { return linearAnswer{OK: true, Token: n} }
	at := func(called, returned int64, c linearCall, output any) porcupine.Operation {
		return porcupine.Operation{Input: c, Output: output, Call: called, Return: returned}
	}
	type history = []porcupine.Operation
	for _, tc := range []struct {
		name   string
		model  porcupine.Model
		linear bool
		calls  history
	}{
		{"two have one lock", fileModel, false, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(1, "lock"), yes)}},
		{"a refusal for nothing", fileModel, false, history{at(1, 2, call(0, "lock"), no)}},
		{"a wait until the unlock", fileModel, true, history{
			at(1, 2, call(0, "lock"), yes), at(3, 6, call(1, "lock"), yes),
			at(4, 7, call(0, "unlock"), yes)}},
		{"shared by two", fileModel, true, history{
			at(1, 2, call(0, "lock", sharing), yes), at(3, 4, call(1, "lock", sharing), yes),
			at(5, 6, call(0, "lock"), no)}},
		{"a close drops", fileModel, true, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(0, "drop"), yes),
			at(5, 6, call(1, "lock"), yes)}},
		{"a close drops what another has", fileModel, false, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(1, "drop"), yes),
			at(5, 6, call(1, "lock"), yes)}},
		{"whose lock is in the way", fileModel, true, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(1, "test"), inTheWay(1))}},
		{"another's lock is in the way", fileModel, false, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(1, "test"), inTheWay(2))}},
		{"a part of the lock that is in the way", fileModel, false, history{
			at(1, 2, call(0, "lock", func(c *linearCall) { c.End = 2 }), yes),
			at(3, 4, call(1, "test"), inTheWay(1))}},
		{"a conversion lets others in first", fileModel, true, history{
			at(1, 2, call(0, "lock", flocks, sharing), yes), at(3, 6, call(1, "lock", flocks), yes),
			at(4, 5, call(0, "unlock", flocks), yes), at(4, 5, call(0, "lock", converts), no)}},
		{"unanswered, and done", fileModel, true, history{
			at(1, 6, call(0, "lock"), nil), at(4, 6, call(0, "death"), yes),
			at(2, 3, call(1, "lock"), no)}},
		{"unanswered, and not done", fileModel, true, history{
			at(1, 6, call(0, "lock"), nil), at(4, 6, call(0, "death"), yes),
			at(2, 3, call(1, "lock"), yes)}},
		{"a lock outlives its process", fileModel, false, history{
			at(1, 2, call(0, "lock"), yes), at(3, 4, call(0, "death"), yes),
			at(5, 6, call(1, "lock"), no)}},
		{"a name is taken twice", namedModel, false, history{
			at(1, 2, call(0, "mkdir", grant(1)), yes), at(3, 4, call(1, "hold", grant(2)), yes)}},
		{"a token falls", namedModel, false, history{
			at(1, 2, call(0, "hold", grant(1)), yes), at(3, 4, call(0, "read hold", grant(1)), read(9)),
			at(5, 6, call(0, "close", grant(1)), yes), at(7, 8, call(0, "mkdir", grant(2)), yes),
			at(9, 10, call(0, "token"), read(8))}},
		{"a take unread goes with its handle", namedModel, true, history{
			at(1, 2, call(0, "take", grant(1)), yes), at(3, 4, call(0, "close", grant(1)), yes),
			at(5, 6, call(1, "exists"), no)}},
		{"a take read goes with its handle", namedModel, false, history{
			at(1, 2, call(0, "take", grant(1)), yes), at(3, 4, call(0, "read take", grant(1)), read(1)),
			at(5, 6, call(0, "close", grant(1)), yes), at(7, 8, call(1, "exists"), no)}},
		{"a hold was released by force, and its handle does not say so", namedModel, false, history{
			at(1, 2, call(0, "hold", grant(1)), yes), at(3, 4, call(1, "release any"), yes),
			at(5, 6, call(0, "read hold", grant(1)), read(5))}},
		{"an old token releases", namedModel, false, history{
			at(1, 2, call(0, "mkdir", grant(1)), yes), at(3, 4, call(0, "token"), read(5)),
			at(5, 6, call(0, "release", token(4)), yes)}},
		{"released, and still mine", namedModel, false, history{
			at(1, 2, call(0, "mkdir", grant(1)), yes), at(3, 4, call(0, "token"), read(5)),
			at(5, 6, call(1, "release any"), yes), at(7, 8, call(0, "is mine", token(5)), yes)}},
	} {
		t.Run(tc.name, func(t *testing.T) { require.Equal(t, tc.linear, porcupine.CheckOperations(tc.model, tc.calls)) })
	}
}
