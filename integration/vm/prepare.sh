#!/bin/bash
# Makes what a guest is booted from, out of Debian packages alone, and keeps it: an emulator, and for each
# system a kernel, an initramfs and a disk image. What is there already is not made again: the names carry
# a hash of what they are made from.
#
# Usage: prepare.sh SYSTEM CACHE    prints the lines qemu=DIR, kernel=FILE, initrd=FILE, disk=FILE
# Exit status 75: Debian cannot be reached, nothing was made.
#
# Does not touch the host's package database or its apt sources.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
system="$1"
cache="$2"
mirror="${PODHOLD_VM_MIRROR:-http://deb.debian.org/debian}"

say() { echo "vm: $*" >&2; }

hash_of() { cat "$@" | sha256sum | cut -c1-12; }

# An unfinished directory never has the final name.
bootstrap() {
	target="$1" suite="$2"
	shift 2
	rm -rf "$target.new"
	if ! mmdebstrap --quiet --mode=root "$@" "$suite" "$target.new" "deb $mirror $suite main" >"$target.log" 2>&1; then
		tail -n 5 "$target.log" >&2
		rm -rf "$target.new"
		say "cannot make $target from $mirror; its log is $target.log"
		exit 75
	fi
	mv "$target.new" "$target"
}

# Debian 13's emulator whatever the host is: unpacked, not installed, and run by its own loader. Debian 12's
# stops in a Debian 13 kernel.
make_emulator() {
	qemu="$cache/qemu-$(echo "trixie qemu-system-x86 virtiofsd 1" | hash_of)"
	[ -d "$qemu" ] && return
	say "unpacking an emulator into $qemu"
	bootstrap "$qemu" trixie --variant=extract --include=qemu-system-x86,virtiofsd
}

make_disk() {
	names="$(sed -n "s/^\(all\|$system\) //p" "$here/packages" | paste -sd,)"
	base="$cache/$system-$(echo "$names 2" | hash_of)"
	[ -e "$base/disk" ] && return
	say "making a $system guest from Debian packages (a minute or two)"
	rm -rf "$base" "$base.root"
	bootstrap "$base.root" "$system" --variant=minbase --include="$names" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*'
	rm -rf "$base.new"
	mkdir "$base.new"
	cp "$base.root"/boot/vmlinuz-* "$base.new/kernel"
	cp -a "$base.root"/bin/busybox "$base.new/busybox"
	find "$base.root"/lib/modules/ -name 'virtio_blk.ko*' -exec cp {} "$base.new/" \;
	if [ -e "$base.new/virtio_blk.ko.xz" ]; then xz -d "$base.new/virtio_blk.ko.xz"; fi
	rm -f "$base.root"/boot/initrd* "$base.root"/initrd*
	: >"$base.root/etc/fstab"
	echo podhold-vm >"$base.root/etc/hostname"
	echo 0123456789abcdef0123456789abcdef >"$base.root/etc/machine-id"
	truncate -s 6G "$base.new/disk"
	mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$base.root" "$base.new/disk"
	rm -rf "$base.root"
	mv "$base.new" "$base"
}

# The initramfs carries our own files into the guest, so that a change to them costs no new disk.
make_initramfs() {
	initrd="$base/initrd-$(find "$here/guest" -type f | sort | xargs cat | hash_of)"
	[ -e "$initrd" ] && return
	rm -f "$base"/initrd-*
	local tree
	tree="$(mktemp -d)"
	mkdir -p "$tree"/{bin,dev,proc,sys,disk,guest/etc/systemd/system,guest/usr/lib/podhold-vm}
	cp "$base/busybox" "$tree/bin/busybox"
	cp "$base/virtio_blk.ko" "$tree/"
	cp "$here/guest/init" "$tree/init"
	cp "$here/guest/session" "$tree/guest/usr/lib/podhold-vm/"
	cp "$here"/guest/*.{service,target} "$tree/guest/etc/systemd/system/"
	chmod +x "$tree/init" "$tree/guest/usr/lib/podhold-vm/session"
	ln -s podhold-vm.target "$tree/guest/etc/systemd/system/default.target"
	sed -n 's/^\([a-z].*\)/\1/p' "$here/guest/masked" | while read -r unit; do
		ln -s /dev/null "$tree/guest/etc/systemd/system/$unit"
	done
	(cd "$tree" && find . | cpio --quiet -o -H newc -R 0:0) >"$initrd.new"
	rm -rf "$tree"
	mv "$initrd.new" "$initrd"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
make_emulator
make_disk
make_initramfs
echo "qemu=$qemu"
echo "kernel=$base/kernel"
echo "initrd=$initrd"
echo "disk=$base/disk"
