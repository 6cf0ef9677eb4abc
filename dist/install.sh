#!/bin/sh
# Installs Podhold from a directory of built programs. Starts and enables nothing.
#
# Usage: install.sh PROGRAMS     DESTDIR: where to put everything beneath; PREFIX [/usr/local]
set -eu

here="$(cd "$(dirname "$0")" && pwd)"
programs="$1"
prefix="${PREFIX:-/usr/local}"
root="${DESTDIR:-}"
units="$root/etc/systemd/system"

# Renamed into place: a program that runs is never written to, and nobody starts half of one.
place() {
	mkdir -p "$(dirname "$3")"
	install -m "$1" "$2" "$3.new"
	mv "$3.new" "$3"
}

place 755 "$programs/podhold" "$root$prefix/bin/podhold"
place 755 "$programs/podhold-shim" "$root$prefix/bin/podhold-shim"
for unit in podhold.service podhold.socket; do
	sed "s|/usr/local/bin|$prefix/bin|" "$here/$unit" >"${TMPDIR:-/tmp}/$unit.$$"
	place 644 "${TMPDIR:-/tmp}/$unit.$$" "$units/$unit"
	rm -f "${TMPDIR:-/tmp}/$unit.$$"
done
# An administrator's configuration stays.
mkdir -p "$root/etc/podhold/conf.d"
[ -n "$root" ] || echo "installed; next: systemctl daemon-reload && systemctl enable --now podhold"
