"""Waits for one lock in one thread and says what happens:

    python3 waiter.py posix|flock|take|hold PATH restart|again

Each SIGUSR1 prints "signal". Its handler does not raise, so the wait goes on: with `restart` the kernel begins the
call again (SA_RESTART), with `again` Python does, after EINTR. Prints "got" with the lock, which it keeps until the end
of standard input.
"""
import fcntl
import os
import signal
import sys

kind, path, how = sys.argv[1:]

# The byte that the C part of the handler writes comes before the interrupted call is begun again; Python's own part
# of it may come much later. A child turns it into a line.
r, w = os.pipe()
os.set_blocking(w, False)
if os.fork() == 0:
    os.close(w)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(r, 1):
        os.write(1, b"signal\n")
    os._exit(0)
os.close(r)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, how == "again")
signal.set_wakeup_fd(w)

fd = None
if kind in ("posix", "flock"):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
os.write(1, b"ready\n")
if kind == "posix":
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
elif kind == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX)
else:
    fd = os.open(path, os.O_RDONLY)
os.write(1, b"got\n")
sys.stdin.read()
