// Package files is the files/ part of the mount: a complete loopback filesystem over a backing directory, spoken
// at the level of the FUSE protocol.
//
// # Nodes
//
// A node stands for one file of the backing filesystem and is keyed by its identity: device, inode and birth time.
// Hard links therefore share a node, and with it a lock key, while a reused inode number does not. A node remembers
// the names it was found under; they serve Path, and reopening where the backing cannot decode file handles.
//
// # Confinement
//
// A name from the kernel is one component, and is only ever given to an *at call below a directory whose identity
// was verified, without following links. No path of several components is resolved, so neither a symbolic link, nor
// "..", nor a rename at the wrong moment leads out of the backing directory. Another filesystem mounted inside it is
// refused with EXDEV.
//
// # Rights
//
// The mount has to use default_permissions: the kernel decides from the attributes shown here, and this package acts
// with its own rights. What is created belongs to the caller from the start (see creds.go). Names are created with
// exactly the mode the kernel asks for, so New sets the umask of the process to 0.
// The mount must not negotiate FUSE_ALLOW_IDMAP: with it the kernel leaves the caller out of most requests.
//
// # Descriptors
//
// Nodes are reached through O_PATH descriptors, of which no more than Config.MaxFDs are kept; the others are opened
// again on demand (fdcache.go). Every open file has a descriptor of its own.
//
// # Successors
//
// The process may be killed at any moment and another go on with the same mount. With Config.Log every change of the
// tables leaves a record (records.go), and a request that must not be done twice leaves word of what it is about to
// do (intent.go), which is kept until Answered. A successor calls New, Replay for each record, Resume, and then
// serves; the kernel sends it the requests that were not answered again, and Claimed ends that.
// Handles have the number of the request that opened them, so that it finds its handle when it comes again. Handles
// are opened anew through file handles; where that cannot be, Config.Store has their descriptors (store.go).
// References of the kernel are not recorded, since it never repeats a FORGET: nodes that were replayed are pinned.
//
// # Concurrency
//
// All methods may be called at the same time, but for Replay and Resume, which come before the first request. FS.mu
// guards the tables and is never held over a system call that can reach the disk, but over Log.Append; node.io guards
// which way an inode does its I/O and is held over the two calls of Passthrough and over Store.Put only.
// Lock order: node.io, then FS.mu. Blocking tells which requests may wait for the disk.
package files
