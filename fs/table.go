package fs

import (
	"io"
	"syscall"

	"lockfs/lockengine"
)

// row is one row of the tables that are the synthetic tree. Lookup, readdir,
// attributes, reading and writing all come from them.
type row struct {
	name string
	mode uint32 // type and permissions, as st_mode
	// unlisted nodes wait or stand for something listed already: readdir
	// leaves them out, so that no walk of the tree opens them.
	unlisted bool

	// text writes a file's content, once for each open, for the caller.
	text func(*Server, node, caller, io.Writer) error
	// quick texts are short, however many locks there are.
	quick bool
	// children are the fixed entries of a directory.
	children []*row
	// find looks up an entry that is not fixed. The node is nil-row when the
	// entry is not synthetic.
	find func(*Server, node, string, caller) (node, error)
	// list calls add for the entries that are not fixed, in order of cookie,
	// after the one given, until add returns false.
	list func(s *Server, n node, c caller, after uint64, add func(name string, n node, cookie uint64) bool)
	// stream makes what reads of an open file wait for.
	stream func(*Server, node) *stream
	// once is set for a stream that says one thing, the same to everybody, and
	// ends. The kernel may cache it, which lets sendfile(2) wait for it.
	once bool
	// take is set for the files whose open waits for a lock.
	take bool

	// The rest is for rows of lockTable.

	// lockText renders a file of a held lock.
	lockText func(*lockView) string
	// write takes what the holder writes. It parses all of it before it
	// changes anything.
	write func(s *Server, unique uint64, l lockengine.Lock, text string) error
	// slow files look at processes, some of them at all that wait.
	slow bool
	// leased nodes do not exist for a hold, which has no lease.
	leased bool
	// generations: each rmdir gives it a new node number.
	generations bool

	index  uint64 // in its table
	parent *row
}

func (r *row) isDir() bool { return r.mode&syscall.S_IFMT == syscall.S_IFDIR }

const (
	dir  = syscall.S_IFDIR
	file = syscall.S_IFREG
)

// The rows that code speaks of by name.
var (
	rootRow   = &row{mode: dir | 0o755}
	tlockRow  = &row{name: "tlock", mode: dir | 0o1777}
	takeRow   = &row{name: "take", mode: dir | 0o755}
	holdRow   = &row{name: "hold", mode: dir | 0o755}
	filesRow  = &row{name: "files", mode: dir | 0o755} // a stand-in: its node is files.Root
	viewRow   = &row{name: "view", mode: dir | 0o555}
	eventsRow = &row{name: "events", mode: file | 0o444, unlisted: true}

	takeFileRow = &row{mode: file | 0o666, take: true}
	holdFileRow = &row{mode: file | 0o666, take: true}
	viewDirRow  = &row{mode: dir | 0o555}
	viewFileRow = &row{mode: file | 0o444}
	viewPidRow  = &row{mode: file | 0o444}

	lockRow     = &row{mode: dir | 0o755}
	tokenRow    = &row{name: "token", mode: file | 0o444}
	timeoutRow  = &row{name: "timeout", mode: file | 0o666, leased: true}
	noteRow     = &row{name: "note", mode: file | 0o666}
	durationRow = &row{name: "d", mode: dir | 0o755, generations: true}
)

// staticTable has every row that is no part of a lock, lockTable what each
// lock's directory holds, the directory itself first.
//
// The order is part of the node numbers: add at the end.
var (
	staticTable []*row
	lockTable   []*row
)

func init() {
	readme := &row{name: "README", mode: file | 0o444, text: renderReadme, quick: true}

	locks := &row{name: "locks", mode: file | 0o444, text: renderLocks}
	jsonl := &row{name: "locks.jsonl", mode: file | 0o444, text: renderLocksJSON}
	graph := &row{name: "graph.dot", mode: file | 0o444, text: renderGraph}
	stats := &row{name: "stats", mode: file | 0o444, text: renderStats, quick: true}
	viewFiles := &row{name: "files", mode: dir | 0o555}
	viewPids := &row{name: "pid", mode: dir | 0o555, find: findPid, list: listPids}

	eventsRow.stream = newEventStream
	tlockRow.find, tlockRow.list = findLock, listLocks
	takeRow.find, holdRow.find = findTake, findTake
	viewFiles.find, viewFiles.list = findViewFile, listViewFiles
	viewDirRow.find, viewDirRow.list = findViewFile, listViewFiles
	viewFileRow.text, viewPidRow.text = renderViewFile, renderViewPid

	viewRow.children = []*row{locks, jsonl, eventsRow, graph, stats, viewFiles, viewPids}
	rootRow.children = []*row{readme, tlockRow, takeRow, holdRow, filesRow, viewRow}
	staticTable = []*row{rootRow, readme, tlockRow, takeRow, holdRow, filesRow, viewRow,
		locks, jsonl, eventsRow, graph, stats, viewFiles, viewPids}
	link(staticTable)

	tokenRow.lockText = renderToken
	timeoutRow.lockText, timeoutRow.write = renderTimeout, writeTimeout
	noteRow.lockText, noteRow.write = renderNote, writeNote
	lockRow.children = []*row{
		tokenRow,
		{name: "tstart", mode: file | 0o444, lockText: renderStart},
		{name: "expiry", mode: file | 0o444, lockText: renderExpiry, leased: true},
		{name: "left", mode: file | 0o444, lockText: renderLeft, leased: true},
		{name: "age", mode: file | 0o444, lockText: renderAge},
		timeoutRow,
		{name: "holder", mode: file | 0o444, lockText: renderHolder, slow: true},
		{name: "waiters", mode: file | 0o444, lockText: renderWaiters, slow: true},
		noteRow,
		{name: "status", mode: file | 0o444, lockText: renderStatus, slow: true},
		{name: "json", mode: file | 0o444, lockText: renderLockJSON, slow: true},
		{name: "wait", mode: file | 0o444, stream: newWaitStream, once: true, unlisted: true},
		durationRow,
	}
	lockTable = append([]*row{lockRow}, lockRow.children...)
	link(lockTable)
}

func link(table []*row) {
	for i, r := range table {
		r.index = uint64(i)
		for _, c := range r.children {
			c.parent = r
		}
	}
}

// child returns the fixed entry of a directory.
func (r *row) child(name string) *row {
	for _, c := range r.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// exists reports whether a lock has the node of this row.
func (r *row) exists(l *lockengine.Lock) bool { return !r.leased || l.Timeout != 0 }
