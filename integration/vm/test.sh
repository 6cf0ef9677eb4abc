#!/bin/bash
# Runs tests of this checkout in a guest (run.sh), and ends as they do. Called by `make vm`, which has built
# the programs; the tests themselves are built here, on the host, and run there from the same paths.
#
# Usage: test.sh PROGRAMS WHAT [--or-skip]     PROGRAMS: the directory of built programs; WHAT is one of
#   FILE or FILE::NAME    a file of integration/tests, or the tests of it whose names contain NAME
#   cgroups               the tests of the crate podhold-cgroups
#   conformance           the official CRI suite (FOCUS=regex)
#   units                 the systemd service (units.sh)
#   reboots               a reboot of the guest and a cut of its power with PODS pods running (units.sh)
#   run                   the pod of the manifest RUN, by `podhold run`
#   short                 what `make test` runs, in one guest, within a time
#   all                   every test of integration/tests
# --or-skip: where no guest can be made or booted, say SKIPPED and end well.
# Environment: SYSTEM, SECURITY (apparmor, selinux, none), DRIVER, FOCUS, RUN, PODS, SUDO, CARGO.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
cd "$here/../.."
programs="$1" what="$2" or_skip="${3:-}"
name="${what%%::*}" filter=""
[ "$name" = "$what" ] || filter="${what#*::}"
cargo="${CARGO:-cargo}"
options=(--memory 3G --env "PROGRAMS=$programs" --env "TERM=dumb")
case "${SECURITY:-apparmor}" in
apparmor) ;;
none) options+=(--append "apparmor=0") ;;
*) options+=(--append "security=$SECURITY") ;;
esac
[ -z "${SYSTEM:-}" ] || options+=(--system "$SYSTEM")
[ -z "${PODS:-}" ] || options+=(--env "PODS=$PODS")
[ -z "${DRIVER:-}" ] || options+=(--env "PODHOLD_TEST_DRIVER=$DRIVER")

# Prints the test programs that these words of cargo name.
tests() {
	"$cargo" test --locked "$@" --no-run --message-format=json |
		sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p'
}

# Once, here: under emulation it takes many minutes.
make_images() { "$programs/podhold-fixtures" store >/dev/null; }

guest() {
	code=0
	# shellcheck disable=SC2086
	${SUDO:-} "$here/run.sh" "${options[@]}" -- bash integration/vm/inside.sh "$@" || code=$?
	if [ "$or_skip" ] && { [ "$code" = 75 ] || [ "$code" = 76 ]; }; then
		echo "SKIPPED: guest: none could be made or booted here (exit code $code)"
		exit 0
	fi
	exit "$code"
}

# Two boots with one disk: pods are started, the first boot ends by KIND, and the second must find it clean.
leaving() {
	local kind="$1" expected="$2" code=0 disk
	disk="$(mktemp "${TMPDIR:-/tmp}/podhold-vm-XXXXXX")"
	truncate -s 6G "$disk"
	mke2fs -q -F -t ext4 "$disk"
	${SUDO:-} "$here/run.sh" "${options[@]}" --disk "$disk" -- bash integration/vm/units.sh before "$kind" || code=$?
	if [ "$code" = "$expected" ]; then
		code=0
		${SUDO:-} "$here/run.sh" "${options[@]}" --disk "$disk" -- bash integration/vm/units.sh after || code=$?
	fi
	rm -f "$disk"
	if [ "$code" = 0 ]; then echo "PASSED: guest: $kind with pods running"; else echo "FAILED: guest: $kind: exit code $code"; fi
	return "$code"
}

if [ "$or_skip" ] && ! integration/setup.sh vm; then
	echo "SKIPPED: guest: its tools cannot be installed from Debian"
	exit 0
fi
case "$name" in
run) guest run "${RUN:?}" ;;
units) make_images && guest units ;;
reboots)
	make_images
	bad=0
	leaving reboot 250 || bad=1
	leaving cut 251 || bad=1
	exit "$bad"
	;;
conformance) make_images && guest conformance "${FOCUS:-}" ;;
cgroups) guest tests "$filter" $(tests -p podhold-cgroups) ;;
all) make_images && guest tests "" $(tests -p podhold-integration --tests) ;;
short)
	options+=(--time 780)
	make_images
	guest short $(tests -p podhold-cgroups)
	;;
*) make_images && guest tests "$filter" $(tests -p podhold-integration --test "$name") ;;
esac
