#!/bin/bash
# Boots a guest: systemd as PID 1 of new namespaces, over an overlay of the host's own root file system.
# Called by machine.py as the first process of those namespaces; everything mounted here vanishes with them.
#
#   DISK       an ext4 image: all that the guest ever wrote
#   DESK       an empty folder outside of the guest, for its mount points
#   BOOT_ID    the id of this boot
#   SHARED     folders of the host that the overlay does not show: on other file systems, or below /tmp
set -euo pipefail
shopt -s nullglob
mount --make-rprivate /
# Disks of other tests were copied into this namespace, and would live on here after their power was cut there.
awk '$5 ~ "/disk$" && / - ext4 \/dev\/loop/ { print $5 }' /proc/self/mountinfo | xargs -r -d '\n' umount -l
mount -t tmpfs tmpfs "$DESK"
mkdir "$DESK/disk" "$DESK/root"
mount -o loop "$DISK" "$DESK/disk"
mkdir -p "$DESK/disk/upper" "$DESK/disk/work"
R=$DESK/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$DESK/disk/upper,workdir=$DESK/disk/work" "$R"

mount -t proc proc "$R/proc"
echo "$BOOT_ID" >"$DESK/boot_id"
mount --bind "$DESK/boot_id" "$R/proc/sys/kernel/random/boot_id"
mount -t sysfs sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for node in null zero full random urandom tty; do
    touch "$R/dev/$node"
    mount --bind "/dev/$node" "$R/dev/$node"
done
mkdir "$R/dev/pts" "$R/dev/shm"
mount -t devpts devpts "$R/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs tmpfs "$R/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
echo "$BOOT_ID" >"$R/run/boot_id" # for sandboxed services, whose /proc is a new one: see below
number=0
for folder in $SHARED; do # each through an overlay of its own, so that the guest may change it too
    number=$((number + 1))
    mkdir -p "$R$folder" "$DESK/disk/shared-$number" "$DESK/disk/shared-$number.work"
    layers=lowerdir=$folder,upperdir=$DESK/disk/shared-$number,workdir=$DESK/disk/shared-$number.work
    mount -t overlay overlay -o "$layers" "$R$folder"
done

# The first boot decides what starts: the few services of a bare machine, and nothing that the host enabled.
if [ ! -e "$DESK/disk/seeded" ]; then
    rm -rf "$R"/etc/systemd/system/*.wants "$R"/etc/systemd/system/*.requires
    bare=" systemd-journald.service systemd-journal-flush.service systemd-tmpfiles-setup.service systemd-logind.service
           systemd-user-sessions.service dbus.service dbus.socket systemd-journald.socket systemd-journald-dev-log.socket "
    for link in "$R"/lib/systemd/system/{sysinit,multi-user,sockets,timers,graphical,local-fs,getty}.target.wants/*; do
        unit=${link##*/}
        case $unit in *.target) continue ;; esac
        [[ $bare == *[[:space:]]"$unit"[[:space:]]* ]] || ln -sf /dev/null "$R/etc/systemd/system/$unit"
    done
    for unit in systemd-udevd.service systemd-remount-fs.service getty.target; do
        ln -sf /dev/null "$R/etc/systemd/system/$unit"
    done
    mkdir -p "$R/etc/systemd/system-generators"
    for generator in "$R"/lib/systemd/system-generators/*; do
        ln -sf /dev/null "$R/etc/systemd/system-generators/${generator##*/}"
    done
    ln -sf /lib/systemd/system/multi-user.target "$R/etc/systemd/system/default.target"
    : >"$R/etc/fstab"
    echo vbatch-guest >"$R/etc/hostname"
    printf '127.0.0.1 localhost vbatch-guest\n::1 localhost\n' >"$R/etc/hosts"
    tr -d - </proc/sys/kernel/random/uuid >"$R/etc/machine-id"
    mkdir "$R/etc/systemd/system/service.d"
    printf '[Service]\nBindReadOnlyPaths=/run/boot_id:/proc/sys/kernel/random/boot_id\n' \
        >"$R/etc/systemd/system/service.d/boot-id.conf"
    # A file of the same name takes that back: this one mounts a folder that everybody is to see.
    mkdir "$R/etc/systemd/system/user-runtime-dir@.service.d"
    : >"$R/etc/systemd/system/user-runtime-dir@.service.d/boot-id.conf"
    mkdir -p "$R/var/log/journal" "$R/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nSyncIntervalSec=1s\nRateLimitBurst=0\n' >"$R/etc/systemd/journald.conf.d/guest.conf"
    touch "$DESK/disk/seeded"
    sync
fi
exec env -i container=vbatch-test PATH="$PATH" chroot "$R" /lib/systemd/systemd --system --log-target=journal
