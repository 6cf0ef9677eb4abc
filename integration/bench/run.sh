#!/bin/bash
# Measures podhold beside Debian's containerd, one after the other in the same run, and the kernel's own
# part of the work. A whole run writes BENCHMARKS.md; one with --only or --runtimes prints its table.
# Everything happens in mount, network and PID namespaces of its own, so that nothing can stay behind but
# cgroups and files, which are removed here. Runs as root.
#
# Usage: run.sh --podhold DIRECTORY [--only PARTS] [--reps N] [--pulls N] [--runtimes NAMES]
#   DIRECTORY  where podhold and podhold-shim were built
#   PARTS      of version,pods,containers,cycle,many,streams,pull,builtin,run,floor   (default: all of these)
#              and busy,crash,recovery, which print tables of their own
#   N          repetitions of cheap rows, and of pulls            (default: 25, 5)
#   NAMES      of containerd,podhold                              (default: both)
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
all=version,pods,containers,cycle,many,streams,pull,builtin,run,floor
podhold="" parts="$all" reps=25 pulls=5 runtimes=containerd,podhold
while [ $# -gt 0 ]; do
	case "$1" in
	--podhold) podhold="$(cd "$2" && pwd)" ;;
	--only) parts="$2" ;;
	--reps) reps="$2" ;;
	--pulls) pulls="$2" ;;
	--runtimes) runtimes="$2" ;;
	*) sed -n 's/^# \{0,1\}//; /^Usage/,/^set/p' "$0" | sed '$d' >&2; exit 2 ;;
	esac
	shift 2
done
if [ "$(id -u)" != 0 ]; then
	echo "run.sh: needs root: run it by sudo" >&2
	exit 2
fi
case ",$runtimes," in
*,podhold,*)
	for program in podhold podhold-shim; do
		[ -x "$podhold/$program" ] || { echo "run.sh: --podhold '$podhold': no $program there; build first" >&2; exit 2; }
	done
	;;
esac

"$here/setup.sh"
work="$(mktemp -d /var/tmp/podhold-bench.XXXXXX)"
results="$root/.cache/bench/results/$(date -u +%Y%m%dT%H%M%SZ)"
mkdir -p "$results"

# When all processes have ended with the PID namespace, these directories are empty but for each other.
finish() {
	status=$?
	trap '' INT TERM
	if [ -n "$machine" ]; then
		kill -KILL "$machine" 2>/dev/null || true
		wait "$machine" 2>/dev/null || true
		sleep 1
	fi
	for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
		for name in podhold-bench podhold-run-bench cribench cribench-service cribench-echo pod-floor; do
			[ ! -d "$hierarchy/$name" ] || find "$hierarchy/$name" -depth -type d -exec rmdir {} +
		done
	done
	rm -rf "$work" /tmp/pod-floor
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM
machine=""

cat /proc/loadavg >"$results/load"
unshare --mount --net --ipc --uts --pid --fork --kill-child --mount-proc --propagation slave -- \
	"$here/inside.sh" "$root" "$work" "$results" "$podhold" "$parts" "$reps" "$pulls" "$runtimes" &
machine=$!
wait $machine
machine=""

if [ "$parts" = "$all" ] && [ "$runtimes" = containerd,podhold ]; then
	python3 "$here/report.py" "$results" "$root/BENCHMARKS.md" >"$root/BENCHMARKS.md.new"
	mv "$root/BENCHMARKS.md.new" "$root/BENCHMARKS.md"
	echo "bench: wrote BENCHMARKS.md; samples are in $results"
else
	[ -z "$(find "$results" \( -name '*.json' -o -name 'floor-*' \) ! -name 'faults-*')" ] ||
		python3 "$here/report.py" "$results"
	python3 "$here/faults_report.py" "$results"
	echo "bench: samples are in $results"
fi
