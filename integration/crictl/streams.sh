#!/bin/bash
# Exec, attach and port-forward by the real crictl, over SPDY and over WebSocket, by pipes and by a real
# terminal (tmux). Ends with status 1 at the first wrong answer; leaves nothing, which is checked too.
#
# Usage: streams.sh DIRECTORY    (where podhold, podhold-shim and the test programs were built)
. "$(dirname "$0")/common.sh"

size=$((64 << 20))

# wait_for WHAT PATTERN COMMAND...: until the command prints what matches, for ten seconds.
wait_for() {
	local what="$1" pattern="$2" output=""
	shift 2
	for _ in $(seq 100); do
		output="$("$@" 2>&1)" || true
		if grep -qE -- "$pattern" <<<"$output"; then
			echo "ok: $what"
			return
		fi
		sleep 0.1
	done
	fail "$what: $* printed no /$pattern/ but: $output"
}

# same WHAT EXPECTED GOT
same() {
	[ "$2" = "$3" ] || fail "$1: expected $2 and got: $3"
	echo "ok: $1"
}

screen() { tmux -S "$work/tmux" "$@"; }

# A terminal of 80 by 24 in which crictl runs.
terminal() {
	local command
	command="$(printf '%q ' "${client[@]}" "$@")"
	screen new-session -d -x 80 -y 24 "TERM=screen $command; echo crictl has ended; sleep 60"
	background+=("$(screen display-message -p '#{pid}')")
}

type_line() { screen send-keys "$1" Enter; }
shown() { screen capture-pane -p; }

# What is typed before the client has taken the terminal over is lost: asks for a prompt until one comes.
prompted() {
	screen send-keys Enter
	sleep 0.2
	shown
}

exec_by_pipes() {
	local t="$1" id="$2" err
	same "$t: exec: standard output" "out" \
		"$(cri exec --transport "$t" "$id" sh -c 'echo out; echo err >&2' 2>"$work/err")"
	same "$t: exec: standard error" "err" "$(cat "$work/err")"
	if err="$(cri exec --transport "$t" "$id" sh -c 'exit 3' 2>&1)"; then fail "$t: exit 3 was told as success"; fi
	grep -q "exit code 3" <<<"$err" || fail "$t: exec: exit 3 was told as: $err"
	echo "ok: $t: exec: exit code"
	same "$t: exec: half close of stdin" "2" "$(printf 'a\nb\n' | cri exec --transport "$t" -i "$id" wc -l)"
	same "$t: exec: $size bytes to the container" "$size" \
		"$(head -c "$size" /dev/zero | cri exec --transport "$t" -i "$id" wc -c)"
	same "$t: exec: $size bytes from the container" "$size" \
		"$(cri exec --transport "$t" "$id" head -c "$size" /dev/zero | wc -c)"
}

exec_by_terminal() {
	local t="$1" id="$2"
	terminal exec --transport "$t" -it "$id" sh
	wait_for "$t: terminal: prompt" '# *$' prompted
	type_line 'busybox stty size'
	wait_for "$t: terminal: size" '^24 80' shown
	screen resize-window -x 100 -y 30
	type_line 'clear; busybox stty size'
	wait_for "$t: terminal: resized" '^30 100' shown
	type_line 'clear; sleep 1234'
	wait_for "$t: terminal: a command runs" 'sleep 1234' cri exec -s "$id" ps
	screen send-keys C-c
	type_line 'echo code $?'
	wait_for "$t: terminal: interrupt" 'code 130' shown
	type_line 'exit'
	wait_for "$t: terminal: ends with its shell" 'crictl has ended' shown
	screen kill-server
}

attach_by_pipes() {
	local t="$1" pod="$2" id client_pid
	id="$(run_container "$pod" "echo-$t" ', "stdin": true' sh -c 'while read l; do echo heard $l; done')"
	mkfifo "$work/in-$t"
	cri attach --transport "$t" -i "$id" <"$work/in-$t" >"$work/out-$t" 2>&1 &
	client_pid=$!
	exec 7>"$work/in-$t"
	echo one >&7
	wait_for "$t: attach: input and output" '^heard one$' cat "$work/out-$t"
	exec 7>&-
	wait "$client_pid" || true
	wait_for "$t: attach: the container outlives the client" "Running +echo-$t" cri ps
	rm "$work/in-$t"
	mkfifo "$work/in-$t"
	cri attach --transport "$t" -i "$id" <"$work/in-$t" >"$work/out-$t" 2>&1 &
	client_pid=$!
	exec 7>"$work/in-$t"
	echo two >&7
	wait_for "$t: attach: again" '^heard two$' cat "$work/out-$t"
	exec 7>&-
	wait "$client_pid" || true
	check "$t: attach: all of it is in the log" '^heard two$' cri logs "$id"
	check "$t: container goes" "$id" cri rm -f "$id"

	id="$(run_container "$pod" "once-$t" ', "stdin": true, "stdin_once": true' cat)"
	same "$t: attach: stdin_once" "the only line" \
		"$(echo 'the only line' | cri attach --transport "$t" -i "$id")"
	wait_for "$t: attach: stdin_once ends the container" "Exited +once-$t" cri ps -a
	check "$t: container goes" "$id" cri rm "$id"
}

attach_by_terminal() {
	local t="$1" pod="$2" id
	id="$(run_container "$pod" "tty-$t" ', "stdin": true, "tty": true' sh)"
	terminal attach --transport "$t" -it "$id"
	wait_for "$t: attached terminal: prompt" '# *$' prompted
	type_line 'busybox stty size'
	wait_for "$t: attached terminal: size" '^24 80' shown
	type_line 'exit 4'
	wait_for "$t: attached terminal: ends with its container" 'crictl has ended' shown
	screen kill-server
	check "$t: attached terminal: exit code" '"exitCode": 4' cri inspect "$id"
	check "$t: container goes" "$id" cri rm "$id"
}

# forward TRANSPORT POD: two ports of the pod, 8080 that sends back what it gets and 8081 that sends a lot.
forward() {
	local t="$1" pod="$2" client_pid clients=()
	# Not by the function: its process would be a shell's, and the signal would not reach the client.
	# Emptied before, so that what an earlier client said is not taken for its words.
	: >"$work/forward-$t"
	timeout 60 "${client[@]}" port-forward --transport "$t" "$pod" 18080:8080 18081:8081 18082:9 \
		>>"$work/forward-$t" 2>&1 &
	client_pid=$!
	wait_for "$t: port-forward listens" 'Forwarding from 127.0.0.1:18082' cat "$work/forward-$t"
	for n in 1 2 3 4 5 6 7 8; do
		echo "hello $n" | timeout 20 busybox nc -w 5 127.0.0.1 18080 >"$work/echo-$n" &
		clients+=($!)
	done
	wait "${clients[@]}" || true
	for n in 1 2 3 4 5 6 7 8; do grep -qx "hello $n" "$work/echo-$n" || fail "$t: connection $n got $(cat "$work/echo-$n"); the client said: $(cat "$work/forward-$t")"; done
	echo "ok: $t: port-forward: eight connections at once"
	same "$t: port-forward: $size bytes" "$size" \
		"$(timeout 60 busybox nc 127.0.0.1 18081 </dev/null | wc -c)"
	# This client ends itself at the first error.
	timeout 5 busybox nc 127.0.0.1 18082 </dev/null || true
	wait_for "$t: port-forward: a port nobody listens on" 'refused' cat "$work/forward-$t"
	kill "$client_pid" 2>/dev/null || true
	wait "$client_pid" || true
}

check "pull" "Image is up to date" cri pull "$address/busybox:1"
check "pull" "Image is up to date" cri pull "$address/probe:1"
for kind in "" host-; do
	if [ "$kind" = host- ]; then
		sed -i 's/"linux": {}/"linux": {"security_context": {"namespace_options": {"network": 2}}}/;
			s/session-uid/host-uid/' "$work/pod.json"
	fi
	pod="$(cri runp "$work/pod.json")" || fail "runp: $pod"
	id="$(run_container "$pod" "${kind}shell" "" sleep 100000)"
	image=probe:1 run_container "$pod" "${kind}echo" "" /probe echo 8080 >/dev/null
	run_container "$pod" "${kind}zeros" "" busybox nc -ll -p 8081 -e head -c "$size" /dev/zero >/dev/null
	for transport in spdy websocket; do
		echo "ok: --- ${kind:-own }network, $transport"
		exec_by_pipes "$transport" "$id"
		exec_by_terminal "$transport" "$id"
		attach_by_pipes "$transport" "$pod"
		attach_by_terminal "$transport" "$pod"
		forward "$transport" "$pod"
		rm -f "$work/in-$transport"
	done
	check "pod goes" "Removed sandbox" cri rmp -f "$pod"
done

check "rmi" "Deleted" cri rmi "$address/busybox:1" "$address/probe:1"
finish_well
