#!/bin/sh
# /var/lib/lockfs stays, also at a purge: it holds the files of files/.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
