#!/bin/sh
# After an upgrade, mounts are served by the new binary; their users notice nothing.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

# dpkg: configure and the old version, empty when there is none. rpm: how many there are now.
case "$1" in
configure) [ -n "$2" ] || exit 0 ;;
[0-9]*) [ "$1" -gt 1 ] || exit 0 ;;
*) exit 0 ;;
esac

# ours PROCESS: it runs our binary, as seen from here and not from a container.
ours() {
	[ "$1/root/." -ef / ] || return 1
	case "$(readlink "$1/exe")" in
	/usr/bin/lockfs | "/usr/bin/lockfs (deleted)") ;;
	*) return 1 ;;
	esac
}

for worker in /proc/[0-9]*; do
	[ "$(cat "$worker/comm" 2>/dev/null)" = lockfs-worker ] && ours "$worker" || continue
	parent=$(sed -n 's/^PPid:[^0-9]*//p' "$worker/status" 2>/dev/null)
	if ours "/proc/$parent"; then
		kill -HUP "$parent" || true
	fi
done
