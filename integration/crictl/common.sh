# What every session of the real crictl stands on; sourced. Sets programs, work, address, daemon and
# registry, starts the registry and the daemon in namespaces of their own, and checks at the end that
# nothing is left (finish_well).
#
# Usage: SCRIPT DIRECTORY    (where podhold, podhold-shim and the test programs were built)
set -euo pipefail

programs="$(cd "$1" && pwd)"
crictl="$(cd "$(dirname "$0")/../.." && pwd)/.cache/bin/crictl"

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

client=("$crictl" --config "$work/crictl.yaml" --runtime-endpoint "unix://$work/podhold.sock")

cri() { timeout 60 "${client[@]}" "$@"; }

# run_container POD NAME EXTRA-JSON WORDS...: prints the id of a running container of $image.
image=busybox:1
run_container() {
	local pod="$1" name="$2" extra="$3" words id
	shift 3
	words="$(printf '"%s",' "$@")"
	cat >"$work/$name.json" <<-END
		{"metadata": {"name": "$name", "attempt": 0}, "image": {"image": "$address/$image"},
		 "command": [${words%,}], "log_path": "$name.log", "linux": {} $extra}
	END
	id="$(cri create "$pod" "$work/$name.json" "$work/pod.json")"
	cri start "$id"
}

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

# A first pod, because the network plugin makes its bridge and its tables once and for all.
first="$(cri runp "$work/pod.json")" || fail "runp: $first"
check "first pod stops" "Stopped sandbox" cri stopp "$first"
check "first pod goes" "Removed sandbox" cri rmp "$first"
snapshot snapshot >"$work/before.json"

# Ends the session: everything must be as it was.
finish_well() {
	for attempt in $(seq 50); do
		if snapshot compare "$work/before.json" >"$work/leaks"; then break; fi
		[ "$attempt" -lt 50 ] || fail "left behind: $(cat "$work/leaks")"
		sleep 0.1
	done
	echo "ok: nothing is left"
}
