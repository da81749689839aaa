#!/usr/bin/env python3
"""Takes a lock, works under it, renews it meanwhile, and releases it.

    python3 take.py MOUNT [NAME]
"""
import os
import sys
import time


def take(mount, name):
    # The open waits in line. Python opens again by itself when a signal interrupts it, which keeps the place.
    with open(f"{mount}/take/{name}+30s") as f:
        return f.read().strip()  # closed unread, the lock would be released again


def renew(lock):
    with open(f"{lock}/timeout", "w") as f:
        f.write("30s\n")


def main(mount, name="example"):
    token = take(mount, name)
    lock = f"{mount}/tlock/{name}@{token}"  # exists only as long as this very lock is held
    print(f"took {name}, token {token}", flush=True)
    for part in range(1, 4):
        time.sleep(0.1)  # in place of work: each part must take less than the timeout
        if not os.path.isdir(lock):
            sys.exit(f"take.py: {name} is no longer ours: stopping before harm is done")
        renew(lock)
        print(f"part {part} done, renewed", flush=True)
    os.rmdir(lock)  # by token: never somebody else's
    print(f"released {name}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: take.py MOUNT [NAME]")
    try:
        main(*sys.argv[1:])
    except OSError as e:
        sys.exit(f"take.py: {e.filename}: {e.strerror}")
    except KeyboardInterrupt:
        sys.exit("take.py: interrupted")
