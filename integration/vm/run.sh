#!/bin/bash
# Boots a Debian guest with pure cgroup v2, systemd as pid 1 and AppArmor, runs a command in it as root,
# shows what the command prints, and exits with its exit status. The checkout is visible in the guest under
# its own path; what the guest writes there stays in the guest.
#
# Usage: run.sh [options] [--] COMMAND…         (without a command: an interactive shell)
#   --system NAME      trixie (default) or bookworm
#   --memory SIZE      of the guest [2G]
#   --append WORDS     further words for its kernel, such as security=selinux
#   --share DIRECTORY  one more directory of the host to show, as it is; may be repeated
#   --env NAME=VALUE   for the command; may be repeated
#   --disk FILE        an ext4 image as a second disk, mounted at /disk2; what is written there stays
#   --time SECONDS     how long the guest may run once it is up [3600]
#   --console FILE     where the kernel's messages go [in the cache: console]
# Environment: PODHOLD_VM_CACHE (default: .cache/vm of the checkout), PODHOLD_VM_MIRROR, PODHOLD_VM_ACCEL (kvm, tcg).
# Exit status: the command's; 75 where no guest can be made, 76 where it does not come up; 124 where it ended, or was
# ended at its time, without the command's.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
checkout="$(cd "$here/../.." && pwd)"
cache="${PODHOLD_VM_CACHE:-$checkout/.cache/vm}"
system=trixie memory=2G append="" disk2="" boot=300 limit=3600 console="$cache/console"
shares=("$checkout") environment=() reader=""

say() { echo "vm: $*" >&2; }

while [ $# -gt 0 ]; do
	case "$1" in
	--system) system="$2" ;;
	--memory) memory="$2" ;;
	--append) append="$2" ;;
	--share) shares+=("$(cd "$2" && pwd)") ;;
	--env) environment+=("$2") ;;
	--disk) disk2="$(realpath "$2")" ;;
	--time) limit="$2" ;;
	--console) console="$(realpath "$2")" ;;
	--) shift && break ;;
	-*) sed -n 's/^# \{0,1\}//p' "$0" | sed -n '/^Usage/,/^Exit/p' >&2 && exit 2 ;;
	*) break ;;
	esac
	shift 2
done

[ "$(id -u)" = 0 ] || { say "needs root"; exit 2; }
made="$("$here/prepare.sh" "$system" "$cache")"
eval "$(sed 's/^\([a-z]*\)=\(.*\)$/\1="\2"/' <<<"$made")"

run="$(mktemp -d "$cache/run-XXXXXX")"
children=()
leave() {
	for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
	[ -n "${PODHOLD_VM_KEEP:-}" ] || rm -rf "$run"
}
trap leave EXIT

# By exec, in a process of its own: what is killed is then the program, not a shell that waits for it.
own() {
	local program="$1"
	shift
	exec "$qemu/usr/lib64/ld-linux-x86-64.so.2" --library-path "$qemu/usr/lib/x86_64-linux-gnu" "$qemu/$program" "$@"
}

emulator() {
	own usr/bin/qemu-system-x86_64 -L "$qemu/usr/share/qemu" -L "$qemu/usr/share/seabios" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$kernel" -initrd "$initrd" "$@"
}

# /dev/kvm may open and still not run a stock kernel: ask it, once for each boot of the host.
accelerator() {
	[ -n "${PODHOLD_VM_ACCEL:-}" ] && { echo "$PODHOLD_VM_ACCEL"; return; }
	local told="$cache/accelerator-$(cat /proc/sys/kernel/random/boot_id)"
	if [ ! -e "$told" ]; then
		local seen="$run/probe" which=tcg
		if [ -w /dev/kvm ]; then
			emulator -accel kvm -cpu host -m 512M -serial "file:$seen" \
				-append "console=ttyS0 quiet podhold.probe" >/dev/null 2>&1 &
			local pid=$! waited=0
			while kill -0 "$pid" 2>/dev/null && [ "$waited" -lt 20 ]; do sleep 1; waited=$((waited + 1)); done
			kill -9 "$pid" 2>/dev/null || true
			wait "$pid" 2>/dev/null || true
			grep -q podhold-probe-alive "$seen" 2>/dev/null && which=kvm
		fi
		rm -f "$cache"/accelerator-*
		echo "$which" >"$told"
	fi
	cat "$told"
}

serve_directory() {
	local tag="$1" directory="$2" keep="$3"
	shift 3
	own usr/libexec/virtiofsd --socket-path "$run/$tag.sock" --shared-dir "$directory" --sandbox none --no-announce-submounts \
		--cache "$keep" "$@" >"$run/$tag.log" 2>&1 &
	children+=($!)
	devices+=(-chardev "socket,id=$tag,path=$run/$tag.sock" -device "vhost-user-fs-pci,chardev=$tag,tag=$tag")
}

mkdir "$run/shared"
printf '%s\n' "${shares[@]}" >"$run/shared/shares"
[ -x /bin/busybox ] && cp /bin/busybox "$run/shared/busybox"
{
	printf 'cd %q\n' "$PWD"
	for word in ${environment[@]+"${environment[@]}"}; do printf 'export %q\n' "$word"; done
	if [ $# -gt 0 ]; then printf '%q ' "$@"; else echo "exec bash -i"; fi
	echo
} >"$run/shared/command"

devices=()
serve_directory run "$run/shared" never
number=0
for directory in "${shares[@]}"; do
	serve_directory "share$number" "$directory" always --readonly
	number=$((number + 1))
done
for _ in $(seq 100); do
	[ "$(ls "$run"/*.sock 2>/dev/null | wc -l)" -gt "$number" ] && break
	sleep 0.05
done

if [ $# -eq 0 ]; then
	echo "${TERM:-linux}" >"$run/shared/interactive"
	devices+=(-chardev stdio,id=out,signal=off -device virtio-serial-pci -device virtconsole,chardev=out)
else
	# Not stdio: at the end of standard input it counts as unplugged, and the guest's writers wait for ever.
	mkfifo "$run/out"
	cat "$run/out" &
	reader=$!
	devices+=(-chardev "file,id=out,path=$run/out" -device virtio-serial-pci -device virtserialport,chardev=out,name=out)
fi
[ -n "$disk2" ] && devices+=(-drive "if=none,id=second,file=$disk2,format=raw,cache=writeback" -device virtio-blk-pci,drive=second)

accel="$(accelerator)"
case "$accel" in
kvm) cpu=host ;;
*) cpu=max accel="tcg,thread=multi" ;;
esac
code=0
terminal="$(stty -g 2>/dev/null || true)"
[ $# -eq 0 ] && [ -n "$terminal" ] && stty raw -echo
# The clock stands beside it, since `timeout` would start a program, not a function.
# A guest that has not come up by then never will.
(
	trap 'kill "$nap"; exit' TERM
	for part in "$boot" "$limit"; do
		sleep "$part" &
		nap=$!
		wait "$nap"
		[ -e "$run/shared/up" ] || break
	done
) &
clock=$!
children+=("$clock")
TMPDIR="$run" emulator -accel "$accel" -cpu "$cpu" -smp 2 -m "$memory" \
	-object "memory-backend-memfd,id=memory,size=$memory,share=on" -machine pc,memory-backend=memory \
	-append "console=ttyS0 quiet panic=-1 systemd.show_status=0 apparmor=1 mitigations=off $append" \
	-drive "if=none,id=root,file=$disk,format=raw,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root \
	-serial "file:$console" "${devices[@]}" <&0 &
machine=$!
children+=("$machine")
ended=""
wait -n -p ended "$machine" "$clock" || code=$?
if [ "$ended" = "$clock" ]; then
	say "the guest's time is over: $boot s to come up, $limit s to run"
	kill -9 "$machine" 2>/dev/null || true
	code=124
fi
[ $# -eq 0 ] && [ -n "$terminal" ] && stty "$terminal"
[ -n "$reader" ] && wait "$reader"
if [ -e "$run/shared/status" ]; then
	exit "$(cat "$run/shared/status")"
fi
say "the guest ended without a word (emulator: exit code $code); its console is $console:"
tail -n 20 "$console" >&2 || true
[ -e "$run/shared/up" ] || exit 76
exit 124
