# machine.sh DEB LOG boots systemd on a throw-away copy of this machine's files, with the package
# DEB, and has it run probe.sh, which writes to LOG. Run it in a mount namespace of its own.
set -eu
deb=$1 log=$2 here=$(dirname "$(readlink -f "$0")")
mount --make-rprivate /
base=$(mktemp -d)
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/up" "$base/work" "$base/root" "$base/cgroup"

# systemd gets a cgroup of its own, which is taken away at the end.
mount -t cgroup2 cgroup2 "$base/cgroup"
group=$base/cgroup/$(basename "$base")
mkdir "$group"
end() {
	echo 0 >"$base/cgroup/cgroup.procs"
	for i in 1 2 3 4 5 6 7 8 9 10; do
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
		[ -d "$group" ] || break
		sleep 0.2
	done
	umount -l "$base" && rmdir "$base"
}
trap end EXIT

root=$base/root
mount -t overlay -o "lowerdir=/,upperdir=$base/up,workdir=$base/work" overlay "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
	: >"$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mknod -m 666 "$root/dev/fuse" c 10 229
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp "$deb" "$root/tmp/lockfs.deb"
cp "$here/probe.sh" "$root/tmp/"
: >"$log"
: >"$root/tmp/log"
mount --bind "$log" "$root/tmp/log"
chroot "$root" dpkg -i /tmp/lockfs.deb

units=$root/etc/systemd/system
mkdir -p "$units/lockfs@locks.service.d"
printf '[Service]\nWatchdogSec=1\n' >"$units/lockfs@locks.service.d/watchdog.conf"
cat >"$units/probe.service" <<'X'
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh /tmp/probe.sh
ExecStopPost=/bin/systemctl poweroff --force --force
StandardOutput=append:/tmp/log
StandardError=append:/tmp/log
TimeoutStartSec=60
X
# Only what is tested starts.
: >"$root/etc/fstab"
for unit in systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup systemd-timesyncd systemd-logind; do
	ln -sf /dev/null "$units/$unit.service"
done

(
	echo 0 >"$group/cgroup.procs"
	exec timeout -k 5 90 unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -c '
		cd "$1"
		mount -t proc proc proc
		mount -t sysfs -o ro sysfs sys
		mount -t cgroup2 cgroup2 sys/fs/cgroup
		mkdir old
		pivot_root . old
		umount -l /old
		exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --unit=probe.service \
			--log-target=console --show-status=no </dev/null' sh "$root"
) || true # it is powered off
