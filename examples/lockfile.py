#!/usr/bin/env python3
"""Locks a file under files/, as any program does: the lock is seen in view/ while it is held.

    python3 lockfile.py MOUNT [FILE]
"""
import fcntl
import os
import sys


def main(mount, file="example.count"):
    # Open for writing, but do not truncate: until the lock is ours, the content is somebody else's.
    fd = os.open(f"{mount}/files/{file}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(fd, "r+") as f:
        # Waits in line; Python waits on by itself when a signal interrupts it, and its place is kept.
        fcntl.flock(f, fcntl.LOCK_EX)
        with open(f"{mount}/view/files/{file}") as view:
            print(f"locked {file}:", view.readline().strip(), flush=True)
        count = int(f.read() or 0) + 1
        f.seek(0)
        f.write(f"{count}\n")
        f.truncate()
        print(f"counted to {count}")
        f.flush()  # written before others get the lock
    print(f"unlocked {file}")  # by the close; had we been killed, the kernel would have closed it


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: lockfile.py MOUNT [FILE]")
    try:
        main(*sys.argv[1:])
    except OSError as e:
        sys.exit(f"lockfile.py: {e.filename or 'lock'}: {e.strerror}")
    except KeyboardInterrupt:
        sys.exit("lockfile.py: interrupted")
