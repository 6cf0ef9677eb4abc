#!/bin/bash
# The systemd service, for real: installed, started, restarted, stopped, upgraded, frozen, with pods running that
# must not notice. Runs in the guest (test.sh units) and changes the machine it runs on: nowhere else.
#
# Usage: units.sh              the whole life, with PODS (3) pods
#        units.sh before KIND  start PODS pods on the second disk, then leave by KIND: reboot or cut (exit 250, 251)
#        units.sh after        in the next boot: what was there is found ended, is removed, and new pods run
set -u

[ -d /run/podhold-vm/run ] || { echo "units.sh: this is no guest" >&2; exit 2; }
pods="${PODS:-3}"
work="$(mktemp -d)"
# Under emulation a program of 40 MB takes seconds to start.
patience=240
socket=/run/podhold/podhold.sock

fail() {
	echo "FAILED: guest: units: $1"
	systemctl status podhold --no-pager -l 2>&1 | tail -n 20
	journalctl -u podhold --no-pager -n 40 2>&1
	exit 1
}
good() { echo "units: $1 ($SECONDS s)"; }
cri() { .cache/bin/crictl "$@" 2> >(grep -v 'cgroup_parent is not set' >&2); }
main() { systemctl show -P MainPID podhold; }
# The workloads' processes, by an argument that nothing else has.
workloads() { pgrep -x -f '/bin/sleep 86417' | sort -n | paste -sd' '; }

within() {
	local deadline=$((SECONDS + patience)) what="$1"
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || fail "$what: not within $patience s"
		sleep 0.5
	done
}
active() { [ "$(systemctl is-active podhold)" = active ]; }
running() { [ "$(cri ps -q 2>/dev/null | wc -l)" = "$1" ]; }
quiet() { ! pgrep -f '^podhold-shim ' >/dev/null; }

install_units() {
	dist/install.sh "$PROGRAMS" >/dev/null || fail "install"
	mkdir -p /etc/podhold/certs.d/127.0.0.1:5000
	printf '[network]\nkind = "bridge"\n' >/etc/podhold/config.toml
	printf 'server = "http://127.0.0.1:5000"\n[host."http://127.0.0.1:5000"]\ncapabilities = ["pull", "resolve"]\n' \
		>/etc/podhold/certs.d/127.0.0.1:5000/hosts.toml
	printf 'runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\ntimeout: 120\n' "$socket" "$socket" >/etc/crictl.yaml
	systemctl daemon-reload
}

pull() {
	ip link set lo up
	"$PROGRAMS/podhold-fixtures" serve --port 5000 >"$work/registry" 2>&1 &
	registry=$!
	within "the registry" grep -q 127.0.0.1:5000 "$work/registry"
	cri pull 127.0.0.1:5000/busybox:1 >/dev/null || fail "pull"
	kill "$registry"
}

start_pods() {
	local number
	for number in $(seq "$1"); do
		cat >"$work/pod.json" <<-JSON
			{"metadata": {"name": "pod-$2-$number", "namespace": "default", "uid": "uid-$2-$number", "attempt": 0},
			 "log_directory": "/var/log/pods/pod-$2-$number", "linux": {}}
		JSON
		cat >"$work/container.json" <<-JSON
			{"metadata": {"name": "sleeper"}, "image": {"image": "127.0.0.1:5000/busybox:1"},
			 "command": ["/bin/sleep", "86417"], "log_path": "sleeper.log", "linux": {}}
		JSON
		cri run --no-pull "$work/container.json" "$work/pod.json" >/dev/null || fail "pod $number"
	done
	within "$1 containers" running "$1"
}

# Nobody has noticed: the same processes, and all containers told as running.
unmoved() {
	within "$1: the service" active
	within "$1: $pods containers told as running" running "$pods"
	[ "$(workloads)" = "$before" ] || fail "$1: the workloads were $before and are $(workloads)"
	good "$1"
}

life() {
	install_units
	systemctl start podhold || fail "start"
	[ "$(systemctl show -P Type podhold)" = notify ] && active || fail "start: it is not active"
	systemctl show -P StatusText podhold | grep -q serving || fail "start: no status is told"
	good "started, ready by its own word"
	pull
	start_pods "$pods" life
	before="$(workloads)"
	[ "$(wc -w <<<"$before")" = "$pods" ] || fail "$pods pods have the workloads $before"
	good "$pods pods run"

	systemctl restart podhold || fail "restart"
	unmoved "restart"
	systemctl stop podhold || fail "stop"
	[ "$(systemctl is-active podhold)" = inactive ] || fail "stop: it is $(systemctl is-active podhold)"
	[ "$(workloads)" = "$before" ] || fail "stop: pods have ended with the unit"
	systemctl start podhold || fail "start again"
	unmoved "stop and start"
	systemctl daemon-reload && systemctl daemon-reexec || fail "reload, reexec"
	unmoved "daemon-reload and daemon-reexec"
	dist/install.sh "$PROGRAMS" >/dev/null && systemctl daemon-reload && systemctl restart podhold || fail "upgrade"
	unmoved "programs replaced, restarted"

	frozen="$(main)"
	kill -STOP "$frozen"
	within "the watchdog" not_main "$frozen"
	unmoved "frozen, ended by the watchdog, started again"

	cri rmp --force --all >/dev/null || fail "remove the pods"
	within "no shim" quiet
	[ -z "$(workloads)" ] || fail "workloads are left: $(workloads)"
	[ -z "$(find /sys/fs/cgroup/podhold* -mindepth 1 -type d 2>/dev/null)" ] || fail "cgroups are left"
	systemctl stop podhold || fail "last stop"
	good "all pods removed, nothing left"

	systemctl start podhold.socket || fail "socket"
	cri version >/dev/null || fail "the first call of a socket-activated daemon"
	active || fail "the socket has started no daemon"
	systemctl stop podhold.socket podhold || fail "stop the socket"
	[ ! -e "$socket" ] || fail "the socket is left"
	good "started by its socket"
}

not_main() { [ "$(main)" != "$1" ] && [ "$(main)" != 0 ] && active; }

keep_state() {
	mkdir -p /disk2/state /var/lib/podhold
	mount --bind /disk2/state /var/lib/podhold
}

leave() {
	keep_state
	install_units
	systemctl start podhold || fail "start"
	pull
	start_pods "$pods" lost
	good "$pods pods run; leaving by $1"
	case "$1" in
	reboot) exit 250 ;;
	*) exit 251 ;;
	esac
}

come_back() {
	keep_state
	install_units
	systemctl start podhold || fail "start after the boot"
	running 0 || fail "containers are told as running that ended with the last boot"
	cri pods -q | while read -r pod; do cri rmp --force "$pod" >/dev/null || exit 1; done || fail "remove the lost pods"
	[ -z "$(cri pods -q)" ] || fail "pods are left"
	cri images -q | grep -q . || fail "the images are gone"
	start_pods "$pods" new
	good "$pods new pods run on the images of before"
	cri rmp --force --all >/dev/null || fail "remove the new pods"
	within "no shim" quiet
	left="$(find /disk2/state -path '*/pods/*' -mindepth 2 2>/dev/null | head -n 5)"
	[ -z "$left" ] || fail "the state directory keeps $left"
	systemctl stop podhold || fail "stop"
	good "back clean"
}

case "${1:-life}" in
life) life ;;
before) leave "$2" ;;
after) come_back ;;
esac
exit 0
