#!/bin/sh
# Builds the fuzz targets and runs each for a while. Works with the stable toolchain: coverage comes from
# LLVM's own pass, and the code is safe Rust, so that no address sanitizer is needed.
#
# Usage: run.sh SECONDS [TARGET]
set -eu

cd "$(dirname "$0")/.."
seconds="$1"
targets="${2:-$(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')}"
work="$PWD/target/fuzz"
host="$(rustc -vV | sed -n 's/^host: //p')"

# These take the place of those in .cargo/config.toml; build scripts have none.
coverage="-sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table"
flags="--cfg fuzzing -Cpasses=sancov-module"
for flag in $coverage -sanitizer-coverage-trace-compares; do
	flags="$flags -Cllvm-args=$flag"
done
RUSTFLAGS="$flags" cargo build --locked --release --target "$host" --target-dir "$work" \
	--manifest-path fuzz/Cargo.toml

# As root, where a layer that escapes can do no harm: the host's files are read-only, except for ours.
confined() {
	if [ "$(id -u)" != 0 ]; then
		"$@"
		return
	fi
	# shellcheck disable=SC2016
	unshare --mount --propagation private sh -c 'mount --bind "$1" "$1" && mount -t tmpfs tmpfs /dev/shm &&
		mount -o remount,bind,ro / && shift && exec "$@"' sh "$work" "$@"
}

for target in $targets; do
	case "$target" in
	layer | archive)
		if [ "$(id -u)" != 0 ]; then
			echo "SKIPPED: fuzz target $target: it unpacks layers, which needs root"
			continue
		fi
		;;
	esac
	mkdir -p "$work/corpus/$target" "$work/artifacts/$target"
	if ! confined "$work/$host/release/$target" "$work/corpus/$target" "fuzz/seeds/$target" \
		-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
		-artifact_prefix="$work/artifacts/$target/" >"$work/$target.log" 2>&1; then
		tail -n 40 "$work/$target.log"
		echo "FAILED: fuzz target $target; the input is in $work/artifacts/$target"
		exit 1
	fi
	runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$target.log")"
	echo "PASSED: fuzz target $target: $runs runs in $seconds s"
done
