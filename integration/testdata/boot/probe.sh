# What an administrator does with lockfs@.service; with a watchdog of one second.
set -eux
unit=lockfs@$(systemd-escape -p /locks).service
of() { systemctl show -p "$1" --value "$unit"; }
until_is() { # PROPERTY VALUE
	i=0
	until [ "$(of "$1")" = "$2" ]; do
		i=$((i + 1))
		[ $i -lt 200 ]
		sleep 0.1
	done
}

not_mounted() {
	if grep ' /locks ' /proc/self/mountinfo; then exit 1; fi
}

systemctl start "$unit"
[ "$(of ActiveState)" = active ]
grep ' /locks .*fuse.lockfs' /proc/self/mountinfo
mkdir /locks/tlock/x+1h
token=$(cat /locks/tlock/x/token)
grep 'unit probe.service' /locks/tlock/x/holder
setpriv --reuid 1 --regid 1 --clear-groups sh -c 'mkdir /locks/tlock/y && grep "uid 1" /locks/tlock/y/holder'

# files/ is as any filesystem.
echo text >/locks/files/f
flock -n /locks/files/f true
chown 1:1 /locks/files/f
chmod 4755 /locks/files/f
[ "$(stat -c '%a %u' /locks/files/f)" = '4755 1' ]
mknod /locks/files/null c 1 3

# A new worker, a dead worker: the service goes on.
systemctl reload "$unit"
main=$(of MainPID)
kill -KILL $(cat "/proc/$main/task/"*/children)
[ "$(cat /locks/tlock/x/token)" = "$token" ]
[ "$(of NRestarts)" = 0 ]

# The mount answers, and systemd hears it.
before=$(of WatchdogTimestampMonotonic)
i=0
while [ "$(of WatchdogTimestampMonotonic)" = "$before" ]; do
	i=$((i + 1))
	[ $i -lt 100 ]
	sleep 0.1
done

# A mount that does not answer is mounted anew, and so is one whose supervisor was killed.
kill -STOP $(cat "/proc/$main/task/"*/children)
until_is NRestarts 1
until_is ActiveState active
[ "$(cat /locks/tlock/x/token)" = "$token" ]
kill -KILL "$(of MainPID)"
until_is NRestarts 2
until_is ActiveState active
[ "$(cat /locks/tlock/x/token)" = "$token" ]

systemctl stop "$unit"
not_mounted

# An ordinary user, by a line of fstab; mount(8) clears the environment.
useradd --create-home probe
home=/home/probe
setpriv --reuid probe --regid probe --init-groups mkdir "$home/mnt"
echo "none $home/mnt lockfs user,noauto 0 0" >>/etc/fstab
setpriv --reuid probe --regid probe --init-groups --inh-caps=-all sh -ec "
	mount $home/mnt
	mkdir $home/mnt/tlock/x
	grep '^user probe' $home/mnt/tlock/x/holder
	umount $home/mnt"
[ -d "$home/.local/state/lockfs" ]

systemctl start "$unit"
dpkg -r lockfs
not_mounted
echo passed
