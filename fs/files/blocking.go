package files

// Opcodes of the FUSE protocol (include/uapi/linux/fuse.h) that never wait for anything but a lookup in the
// backing's caches. OPEN is among them as long as it does not truncate.
var inline = map[uint32]bool{
	1:  true, // LOOKUP
	2:  true, // FORGET
	3:  true, // GETATTR
	5:  true, // READLINK
	14: true, // OPEN
	17: true, // STATFS
	18: true, // RELEASE
	25: true, // FLUSH
	29: true, // RELEASEDIR
	34: true, // ACCESS
	39: true, // IOCTL
	42: true, // BATCH_FORGET
	52: true, // STATX
}

// Blocking reports whether a request with this opcode may wait for the disk or for another such request, and so
// should not be served on the thread that reads the device. OPEN with O_TRUNC has to be told apart by the caller.
func Blocking(opcode uint32) bool { return !inline[opcode] }
