#!/bin/bash
# A session of the real crictl with a running daemon: every verb once, each answer checked. Ends with
# status 1 at the first wrong one. Runs in namespaces of its own and leaves nothing, which is checked too.
#
# Usage: session.sh DIRECTORY    (where podhold, podhold-shim and the test programs were built)
. "$(dirname "$0")/common.sh"

cat >"$work/container.json" <<END
{"metadata": {"name": "shell", "attempt": 0}, "image": {"image": "$address/busybox:1"},
 "command": ["/bin/sh", "-c", "echo from the container; trap 'exit 7' TERM; while true; do sleep 0.1; done"],
 "log_path": "shell.log", "linux": {"resources": {"memory_limit_in_bytes": 67108864}}}
END

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

finish_well
