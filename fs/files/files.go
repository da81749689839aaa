package files

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Root is the node number of files/ itself. Every other node of this package has a greater one, without bit 62.
const Root = 2

// Config says what to serve and how.
type Config struct {
	Dir         string      // the backing directory; it must exist and carry no POSIX ACL
	Passthrough Passthrough // nil: all I/O goes through the server
	AllowOther  bool        // callers have various uids: create files as the caller; if we are not root, only for ourselves
	Logger      *slog.Logger
	MaxFDs      int // O_PATH descriptors kept for nodes; 0: a quarter of RLIMIT_NOFILE

	// Log keeps what a successor of this process must know; nil: nothing is kept.
	Log Log
	// Store keeps descriptors beyond our death; nil: none.
	Store Store

	noHandles bool   // for tests: as if the backing could not decode file handles
	noRoot    uint32 // for tests: as if this user, who is not root, were serving; 0: we are who we are
}

// Passthrough registers backing files with the kernel, which then reads and writes them without asking us.
type Passthrough interface {
	// Register is FUSE_DEV_IOC_BACKING_OPEN. The descriptor may be closed once it returns.
	Register(fd int) (id int32, err error)
	// Unregister is FUSE_DEV_IOC_BACKING_CLOSE.
	Unregister(id int32)
}

// Log is the part of a journal that is needed.
type Log interface {
	// Room fails unless n+reserve more bytes can be appended.
	Room(n, reserve int) error
	// Append adds one record.
	Append(kind uint8, data []byte) (pos uint64, err error)
}

// Store keeps descriptors for a successor, by the number of their handle.
type Store interface {
	Put(fh uint64, fd int) error // keeps a duplicate; replaces
	Drop(fh uint64)
	Take() (map[uint64]int, error) // all that are kept, duplicates that are now ours
}

// FS serves the nodes below files/. It implements fuse.RawFileSystem, but for the lock requests.
type FS struct {
	fuse.RawFileSystem

	log    *slog.Logger
	root   *node
	mount  mountID
	local  bool // see statAt
	maxFDs int

	mountFD     int           // to open file handles with, -1 if that cannot be done
	acls        bool          // the backing can carry POSIX ACLs, so nodes have to be asked
	creds       *callerCreds  // nil: create everything as ourselves
	shared      bool          // Config.AllowOther
	uid         uint32        // ours
	pass        Passthrough   // nil: none
	passOff     atomic.Bool   // the kernel said never
	closer      *closer       // closes what may take long
	warnedACL   atomic.Uint64 // ACLs met, to warn once
	journal     Log           // nil: none
	store       Store         // nil: none
	storeAll    bool          // a successor could not open every file again by itself
	storeFailed atomic.Bool   // said once

	mu        sync.Mutex
	nodes     map[uint64]*node   // GUARDED_BY(mu)
	idents    map[ident]*node    // GUARDED_BY(mu)
	names     map[nameKey]*node  // GUARDED_BY(mu)
	lru       lru                // GUARDED_BY(mu)
	open      map[uint64]*handle // GUARDED_BY(mu)
	otherRoot error              // the predecessor had another backing directory
	lastNode  uint64             // GUARDED_BY(mu)
	pinned    int                // nodes that are. GUARDED_BY(mu)

	intents       map[uint64]state // of requests not answered yet. GUARDED_BY(mu)
	inherited     map[uint64]state // of requests that may be sent again. GUARDED_BY(mu)
	highestID     int32            // of the backing ids there were. GUARDED_BY(mu)
	scratch       []byte           // for the record being made. GUARDED_BY(mu)
	journalFailed bool             // said once. GUARDED_BY(mu)
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New opens the backing directory. It sets the umask of the process to 0, since the modes in requests have the
// caller's umask applied already. It refuses a directory with POSIX ACLs, which mode bits alone cannot enforce.
func New(cfg Config) (*FS, error) {
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           cfg.Logger,
		maxFDs:        cfg.MaxFDs,
		shared:        cfg.AllowOther,
		uid:           uint32(os.Geteuid()),
		pass:          cfg.Passthrough,
		nodes:         map[uint64]*node{},
		idents:        map[ident]*node{},
		names:         map[nameKey]*node{},
		open:          map[uint64]*handle{},
		lastNode:      Root,
		journal:       cfg.Log,
		store:         cfg.Store,
		intents:       map[uint64]state{},
		inherited:     map[uint64]state{},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.maxFDs <= 0 {
		f.maxFDs = defaultMaxFDs()
	}
	if err := f.openRoot(cfg.Dir); err != nil {
		return nil, err
	}
	f.mountFD = -1
	if !cfg.noHandles {
		f.mountFD = openMount(f.root.fd.fd)
	}
	f.storeAll = f.mountFD < 0 || os.Geteuid() != 0
	if cfg.noRoot != 0 {
		f.uid = cfg.noRoot
	}
	if cfg.AllowOther && f.uid == 0 {
		creds, err := newCallerCreds()
		if err != nil {
			f.closeRoot()
			return nil, fmt.Errorf("files: reading our capabilities: %w", err)
		}
		f.creds = creds
	}
	f.closer = newCloser()
	unix.Umask(0)
	return f, nil
}

func defaultMaxFDs() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 256
	}
	return int(min(max(lim.Cur/4, 16), 1<<20))
}

// openRoot makes the node of the backing directory; its descriptor is never evicted.
func (f *FS) openRoot(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("files: backing directory %s: %w", dir, err)
	}
	if err := f.adoptRoot(fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("files: backing directory %s: %w", dir, err)
	}
	return nil
}

var errACL = errors.New("it carries POSIX ACLs, which cannot be enforced through the mount; " +
	"remove them with setfacl -bk, or choose another directory")

func (f *FS) adoptRoot(fd int) error {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return err
	}
	if err := unix.Access(procPath(fd), unix.F_OK); err != nil {
		return fmt.Errorf("/proc is needed to open files again: %w", err)
	}
	has, supported := hasACL(procPath(fd)+"/.", true)
	if has {
		return errACL
	}
	f.acls = supported
	f.mount, f.local = mountOf(&st), isLocal(fd)
	f.root = newNode(Root, &st)
	f.root.lookups = 1 // the kernel never forgets it
	f.root.fd = &pathFD{fd: fd, users: 1}
	f.nodes[Root], f.idents[f.root.ident] = f.root, f.root
	return nil
}

func (f *FS) closeRoot() {
	unix.Close(f.root.fd.fd)
	f.closeMount()
}

func (f *FS) closeMount() {
	if f.mountFD >= 0 {
		unix.Close(f.mountFD)
	}
}

// Close closes every descriptor. Call it after the last request was answered.
func (f *FS) Close() error {
	f.mu.Lock()
	var fds []int
	for _, n := range f.nodes {
		if n.fd != nil {
			fds = append(fds, n.fd.fd)
		}
	}
	for _, h := range f.open {
		if h.fd >= 0 {
			fds = append(fds, h.fd)
		}
	}
	clear(f.nodes)
	clear(f.idents)
	clear(f.names)
	clear(f.open)
	f.lru = lru{}
	f.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
	f.closeMount()
	f.closer.stop()
	return nil
}

func (f *FS) String() string { return "lockfs files" }
