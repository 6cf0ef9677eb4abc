#!/bin/bash
# What runs in the guest. Prints what .ci/run counts: the tests' own sums, and PASSED, FAILED or SKIPPED lines
# for the steps that are none.
#
# Usage: inside.sh tests FILTER PROGRAM… | conformance FOCUS | run MANIFEST | units | short PROGRAM…
set -u

good=0
# Seconds since the boot after which a short run begins nothing more.
last_begin=300

bad() {
	echo "FAILED: guest: $1"
	good=1
}

# One at a time: two processors of an emulator are not two.
tests() {
	local filter="$1" program
	shift
	for program in "$@"; do
		echo "guest: $(basename "$program")"
		# shellcheck disable=SC2086
		"$program" --test-threads 1 --show-output $filter || good=1
	done
}

# What is skipped for want of AppArmor is run where there is AppArmor.
conformance() {
	local skips=integration/conformance/skips.toml
	if grep -q apparmor /sys/kernel/security/lsm; then
		awk 'BEGIN { RS = ""; ORS = "\n\n" } !/why = "AppArmor is not in this kernel"/' "$skips" >/tmp/skips.toml
		skips=/tmp/skips.toml
	fi
	"$PROGRAMS/podhold-conformance" --skips "$skips" --critest .cache/bin/critest \
		${1:+--focus "$1"} || good=1
}

# A step of the short run: its name, how many seconds it may take, and its command.
step() {
	local name="$1" limit="$2" up
	shift 2
	up="$(cut -d. -f1 /proc/uptime)"
	if [ "$up" -gt "$last_begin" ]; then
		echo "SKIPPED: guest: $name: no time is left after $up s under emulation"
		return
	fi
	local begun="$SECONDS" code=0
	timeout "$limit" "$@" || code=$?
	# A host that is too slow is no fault of ours; what hangs has limits of its own, and fails by them.
	case "$code" in
	0) echo "PASSED: guest: $name ($((SECONDS - begun)) s)" ;;
	124) echo "SKIPPED: guest: $name: not done in $limit s under emulation" ;;
	*) bad "$name" ;;
	esac
}

pure_v2='[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] && [ "$(cat /proc/1/comm)" = systemd ] &&
	grep -q apparmor /sys/kernel/security/lsm'

case "$1" in
tests) shift && tests "$@" ;;
conformance) conformance "$2" ;;
run) "$PROGRAMS/podhold" run "$2" || good=$? ;;
units) bash integration/vm/units.sh || good=1 ;;
short)
	shift
	step "pure cgroup v2, systemd and AppArmor" 60 bash -c "$pure_v2"
	for program in "$@"; do
		name="$(basename "$program")"
		step "cgroups: ${name%-*}" 120 "$program" --test-threads 1 --show-output
	done
	step "podhold doctor" 120 "$PROGRAMS/podhold" doctor
	step "the systemd service" 420 bash integration/vm/units.sh
	;;
esac
exit "$good"
