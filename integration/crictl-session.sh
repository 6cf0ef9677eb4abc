#!/bin/bash
# A session of the real crictl with a running daemon: every verb once, each answer checked. Ends with
# status 1 at the first wrong one. Runs in namespaces of its own and leaves nothing, which is checked too.
#
# Usage: crictl-session.sh DIRECTORY    (where podhold, podhold-shim and the test programs were built)
set -euo pipefail

programs="$(cd "$1" && pwd)"
here="$(cd "$(dirname "$0")" && pwd)"
crictl="$here/../.cache/bin/crictl"

# Outside: the namespaces, and what can be cleaned up only once they are gone.
if [ "${2:-}" != inside ]; then
	work="$(mktemp -d)"
	name="podhold-crictl-$(basename "$work" | tr -dc '[:alnum:]')"
	status=0
	"$programs/podhold-machine" run -- "$0" "$programs" inside "$work" || status=$?
	find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$work"
	exit "$status"
fi

work="$3"
name="podhold-crictl-$(basename "$work" | tr -dc '[:alnum:]')"
background=()

finish() {
	status=$?
	if [ $status != 0 ] && [ -e "$work/podhold.log" ]; then
		echo "the daemon's last words:"
		tail -n 40 "$work/podhold.log"
	fi
	for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${background[@]}"; do wait "$pid" 2>/dev/null || true; done
	exit $status
}
trap finish EXIT

fail() {
	echo "FAILED: crictl session: $*"
	exit 1
}

cri() { timeout 60 "$crictl" --config "$work/crictl.yaml" --runtime-endpoint "unix://$work/podhold.sock" "$@"; }

# check WHAT PATTERN COMMAND...: the command succeeds, and what it prints matches.
check() {
	local what="$1" pattern="$2" output
	shift 2
	output="$("$@" 2>&1)" || fail "$what: $* failed: $output"
	grep -qE -- "$pattern" <<<"$output" || fail "$what: $* printed no /$pattern/ but: $output"
	echo "ok: $what"
}

# absent WHAT PATTERN COMMAND...: the command succeeds, and what it prints does not match.
absent() {
	local what="$1" pattern="$2" output
	shift 2
	output="$("$@" 2>&1)" || fail "$what: $* failed: $output"
	if grep -qE -- "$pattern" <<<"$output"; then fail "$what: $* printed /$pattern/: $output"; fi
	echo "ok: $what"
}

snapshot() {
	"$programs/podhold-machine" "$@" --cgroup "$name" --except-link podhold-it \
		--except-pid "$daemon" --except-pid "$registry" \
		--files "$work/run" --files "$work/state" --files /var/lib/cni
}

mkdir "$work/cni" "$work/logs"
# Without it crictl warns at every call; with its default it might find somebody's.
echo "timeout: 60" >"$work/crictl.yaml"
mkfifo "$work/address"
"$programs/podhold-fixtures" serve --port 5000 >"$work/address" &
registry=$!
background+=("$registry")
read -r address <"$work/address"
mkdir -p "$work/certs.d/$address"
printf 'server = "http://%s"\n[host."http://%s"]\ncapabilities = ["pull", "resolve"]\n' \
	"$address" "$address" >"$work/certs.d/$address/hosts.toml"
cat >"$work/cni/10-podhold.conflist" <<END
{"cniVersion": "1.0.0", "name": "podhold-it", "plugins": [
  {"type": "bridge", "bridge": "podhold-it", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
cat >"$work/config.toml" <<END
run_dir = "$work/run"
state_dir = "$work/state"
socket = "$work/podhold.sock"
[cgroups]
parent = "/$name"
[cni]
conf_dir = "$work/cni"
[image]
hosts_dir = "$work/certs.d"
[shim]
binary = "$programs/podhold-shim"
END
"$programs/podhold" serve --config "$work/config.toml" >"$work/podhold.log" 2>&1 &
daemon=$!
background+=("$daemon")
for _ in $(seq 100); do
	[ -S "$work/podhold.sock" ] && cri version >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || fail "the daemon has ended"
	sleep 0.1
done

cat >"$work/pod.json" <<END
{"metadata": {"name": "session", "uid": "session-uid", "namespace": "default", "attempt": 0},
 "hostname": "session", "log_directory": "$work/logs",
 "labels": {"app": "session"}, "linux": {}}
END
cat >"$work/container.json" <<END
{"metadata": {"name": "shell", "attempt": 0}, "image": {"image": "$address/busybox:1"},
 "command": ["/bin/sh", "-c", "echo from the container; trap 'exit 7' TERM; while true; do sleep 0.1; done"],
 "log_path": "shell.log", "linux": {"resources": {"memory_limit_in_bytes": 67108864}}}
END

# A first pod, because the network plugin makes its bridge and its tables once and for all.
first="$(cri runp "$work/pod.json")" || fail "runp: $first"
check "first pod stops" "Stopped sandbox" cri stopp "$first"
check "first pod goes" "Removed sandbox" cri rmp "$first"
snapshot snapshot >"$work/before.json"

check "version" "RuntimeName: +podhold" cri version
check "info" '"RuntimeReady"' cri info
check "pull" "Image is up to date for .*(sha256:|$address)" cri pull "$address/busybox:1"
check "images" "$address/busybox +1 " cri images
check "inspecti" "$address/busybox:1" cri inspecti "$address/busybox:1"

pod="$(cri runp "$work/pod.json")" || fail "runp: $pod"
[[ "$pod" =~ ^[0-9a-z]{1,64}$ ]] || fail "runp printed no id but $pod"
check "pods" "session +default +0" cri pods
check "pods are ready" "Ready" cri pods --state ready
check "inspectp has an address" '"ip": "10\.89\.' cri inspectp "$pod"

container="$(cri create "$pod" "$work/container.json" "$work/pod.json")" || fail "create: $container"
check "ps -a shows it created" "Created +shell" cri ps -a
check "start" "$container" cri start "$container"
check "ps" "Running +shell" cri ps
check "inspect" '"state": "CONTAINER_RUNNING"' cri inspect "$container"
check "exec -s" "^in the container 10\.89\." cri exec -s "$container" /bin/sh -c \
	'echo "in the container $(ip -4 -o addr show eth0 | sed "s/.*inet \([0-9.]*\).*/\1/")"'
if output="$(cri exec -s "$container" /bin/false 2>&1)"; then fail "exec -s false ended well: $output"; fi
echo "ok: exec -s tells of a failure"
check "logs" "^from the container$" cri logs "$container"
check "stats" "$(cut -c1-13 <<<"$container") +shell" cri stats "$container"
check "stats in full" '"workingSetBytes"' cri stats -o json "$container"
check "statsp" "session" cri statsp "$pod"
check "update" "$container" cri update --memory 134217728 "$container"
check "update is in force" '"memoryLimitInBytes": "134217728"' cri inspect "$container"
check "stop" "$container" cri stop --timeout 10 "$container"
check "the exit code is the container's own" '"exitCode": 7' cri inspect "$container"
absent "ps shows running ones only" "shell" cri ps
check "rm" "$container" cri rm "$container"
absent "ps -a does not show it any more" "shell" cri ps -a
check "stopp" "Stopped sandbox $pod" cri stopp "$pod"
check "pods shows it stopped" "NotReady" cri pods
check "rmp" "Removed sandbox $pod" cri rmp "$pod"
absent "pods does not show it any more" "session" cri pods
check "rmi" "Deleted" cri rmi "$address/busybox:1"
absent "images does not show it any more" "busybox" cri images

for attempt in $(seq 50); do
	if snapshot compare "$work/before.json" >"$work/leaks"; then break; fi
	[ "$attempt" -lt 50 ] || fail "left behind: $(cat "$work/leaks")"
	sleep 0.1
done
echo "ok: nothing is left"
