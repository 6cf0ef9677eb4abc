#!/bin/bash
# The demo: a registry with one image on the loopback address, a pod network, and `podhold run` with the
# pod beside this file. Afterwards everything is removed.
#
# Usage: run.sh DIRECTORY    (where podhold, podhold-shim and podhold-fixtures were built)
set -euo pipefail

programs="$(cd "$1" && pwd)"
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
bridge=podhold-demo
registry=

finish() {
	status=$?
	if [ -n "$registry" ]; then
		kill "$registry" 2>/dev/null || true
		wait "$registry" 2>/dev/null || true
	fi
	# The network plugin makes a bridge and never removes it.
	ip link delete "$bridge" 2>/dev/null || true
	# The parent of all pods' cgroups outlives each of them.
	find /sys/fs/cgroup -depth -type d -path "*/podhold-demo*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$work" "/var/lib/cni/networks/$bridge"
	exit $status
}
trap finish EXIT

echo "== a private registry, with an image made from Debian's busybox"
mkfifo "$work/address"
"$programs/podhold-fixtures" serve >"$work/address" &
registry=$!
read -r address <"$work/address"
mkdir -p "$work/certs.d/$address" "$work/cni"
printf 'server = "http://%s"\n[host."http://%s"]\ncapabilities = ["pull", "resolve"]\n' \
	"$address" "$address" >"$work/certs.d/$address/hosts.toml"

echo "== a pod network"
cat >"$work/cni/10-demo.conflist" <<END
{"cniVersion": "1.0.0", "name": "$bridge", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.253.0.0/24"}]]}}]}
END
cat >"$work/config.toml" <<END
[cgroups]
parent = "/podhold-demo"
[cni]
conf_dir = "$work/cni"
[image]
hosts_dir = "$work/certs.d"
[shim]
binary = "$programs/podhold-shim"
END

sed "s/REGISTRY/$address/" "$here/pod.yaml" >"$work/pod.yaml"
echo "== podhold run pod.yaml"
status=0
"$programs/podhold" run --config "$work/config.toml" --run-dir "$work/run" --state-dir "$work/state" \
	"$work/pod.yaml" || status=$?
echo "== the pod has ended with exit code $status"
exit $status
