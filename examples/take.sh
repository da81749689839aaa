#!/bin/sh
# Takes a lock, works under it, renews it meanwhile, and releases it.
#
#     sh take.sh MOUNT [NAME]

die() {
    echo "take.sh: $*" >&2
    exit 1
}

[ $# -ge 1 ] || die "usage: take.sh MOUNT [NAME]"
mount=$1 name=${2:-example}

# The open of take/ waits in line. It is cat that waits, so a signal to this shell does not disturb it.
token=$(cat "$mount/take/$name+30s") || exit 1 # cat has said why
lock=$mount/tlock/$name@$token

# Set only now, and with the token: it can never release somebody else's lock.
trap 'rmdir "$lock" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "took $name, token $token"

for part in 1 2 3; do
    sleep 0.1 # in place of work: each part must take less than the timeout
    [ -d "$lock" ] || die "$name is no longer ours: stopping before harm is done"
    { echo 30s > "$lock/timeout"; } 2>/dev/null || die "$name ended before it was renewed"
    echo "part $part done, renewed"
done

trap - EXIT
rmdir "$lock" || exit 1
echo "released $name"
