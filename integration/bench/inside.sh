#!/bin/bash
# The part of run.sh that runs inside the namespaces: the registry with its images, then one runtime at a
# time. Called by run.sh only; all its processes end with it.
set -euo pipefail
export PYTHONDONTWRITEBYTECODE=1

root="$1" work="$2" results="$3" podhold="$4" parts="$5" reps="$6" pulls="$7" runtimes="$8"
here="$root/integration/bench"
cache="$root/.cache/bench"
registry=127.0.0.1:5000
bridge=phbench0

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/cni "$work/cni-cache" "$work/cni" "$work/hosts/$registry"
mount --bind "$work/cni-cache" /var/lib/cni
ip link set lo up

say() { echo "bench: $(date +%T) $*"; }

# Ends a process of ours and waits for it.
end() {
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

serve_images() {
	# Another generator makes other images.
	storage="$cache/registry-$(sha256sum "$here/images.py" | cut -c1-12)"
	mkdir -p "$storage"
	cat >"$work/registry.yml" <<-END
		{"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": true}},
		 "storage": {"filesystem": {"rootdirectory": "$storage"}, "maintenance": {"uploadpurging": {"enabled": false}}},
		 "http": {"addr": "$registry", "secret": "not a secret"}}
	END
	OTEL_TRACES_EXPORTER=none docker-registry serve "$work/registry.yml" >"$results/registry.log" 2>&1 &
	for _ in $(seq 100); do
		if (: <"/dev/tcp/${registry/://}") 2>/dev/null; then break; fi
		sleep 0.1
	done
	say "images: from .cache, or made now, which takes two minutes"
	python3 "$here/images.py" "$registry" --pause "$cache/bin/pause"
	printf 'server = "http://%s"\n[host."http://%s"]\ncapabilities = ["pull", "resolve"]\n' \
		"$registry" "$registry" >"$work/hosts/$registry/hosts.toml"
	cat >"$work/cni/10-bench.conflist" <<-END
		{"cniVersion": "1.0.0", "name": "phbench", "plugins": [
		  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": false,
		   "ipam": {"type": "host-local", "dataDir": "$work/ipam", "routes": [{"dst": "0.0.0.0/0"}],
		            "ranges": [[{"subnet": "10.254.128.0/20"}]]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	END
}

# A file system of its own for what runtime $1 pulls: with a journal, as nodes have it. (One without looks at every
# recently deleted inode before it takes a new one, and each pull here follows a removal.)
make_disk() {
	disk="$work/disk-$1"
	mkdir -p "$disk"
	fallocate -l 12G "$disk.img"
	mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$disk.img"
	mount -o loop "$disk.img" "$disk"
}

remove_disk() {
	umount "$disk"
	rm "$disk.img"
}

configure_containerd() {
	# CAP_SYS_RESOURCE may be missing: without restrict_oom_score_adj nothing would start then.
	cat >"$work/containerd.toml" <<-END
		version = 2
		root = "$disk/containerd"
		state = "/run/containerd"
		[grpc]
		address = "/run/containerd/containerd.sock"
		[plugins."io.containerd.internal.v1.opt"]
		path = "$work/containerd-opt"
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = "$registry/bench/pause:1"
		restrict_oom_score_adj = true
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "/usr/lib/cni"
		conf_dir = "$work/cni"
		[plugins."io.containerd.grpc.v1.cri".registry]
		config_path = "$work/hosts"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		BinaryName = "$cache/peer/usr/sbin/runc"
		SystemdCgroup = false
	END
	socket=/run/containerd/containerd.sock
	command=("$cache/peer/usr/bin/containerd" --config "$work/containerd.toml")
}

configure_podhold() {
	cat >"$work/podhold.toml" <<-END
		run_dir = "/run/podhold"
		state_dir = "$disk/podhold"
		socket = "/run/podhold/podhold.sock"
		log_level = "info"
		[cgroups]
		driver = "cgroupfs"
		parent = "/podhold-bench"
		[network]
		kind = "${network:-cni}"
		[cni]
		conf_dir = "$work/cni"
		bin_dirs = ["/usr/lib/cni"]
		[image]
		hosts_dir = "$work/hosts"
		[shim]
		binary = "$podhold/podhold-shim"
	END
	socket=/run/podhold/podhold.sock
	command=("$podhold/podhold" serve --config "$work/podhold.toml")
}

# The same with our own network in place of plugins.
configure_builtin() {
	network=bridge
	configure_podhold
	network=
}

# Measures parts $3 of runtime $1, into $2.
measure() {
	name="$1" out="$2"
	"configure_$name"
	say "$name: starts"
	"${command[@]}" >"$results/$out.log" 2>&1 &
	daemon=$!
	"$cache/venv/bin/python" "$here/cribench.py" --proto "$root/proto/cri/v1/api.proto" \
		--endpoint "unix://$socket" --daemon-pid $daemon --runs "$reps" --pull-runs "$pulls" --parts "$3" \
		--image "$registry/bench/busybox:1" --pull "$registry/bench/pull-1:1" \
		--pull "$registry/bench/pull-8:1" --out "$results/$out.json" || say "$name: failed"
	end $daemon
	say "$name: has ended"
	ip link delete "$bridge" 2>/dev/null || true
}

# The parts in which the daemon is killed and started again. Containerd recovers fewer pods: more take it
# minutes to make.
measure_faults() {
	name="$1"
	"configure_$name"
	say "$name: faults"
	recover=1,50,100
	[ "$name" != podhold ] || recover=1,10,50,100,200,500,1000
	"$cache/venv/bin/python" "$here/faults.py" --proto "$root/proto/cri/v1/api.proto" \
		--endpoint "unix://$socket" --out "$results/faults-$name.json" --log "$results/faults-$name.log" \
		--image "$registry/bench/busybox:1" --pull "$registry/bench/pull-1:1" --pull "$registry/bench/pull-8:1" \
		--parts "$fault_parts" --scratch "$work/scratch-$name" --ipam "$work/ipam" --writer "$cache/bin/writer" \
		--recover "${RECOVER:-$recover}" -- "${command[@]}" || say "$name: failed"
	ip link delete "$bridge" 2>/dev/null || true
}

# Commands that run one pod. Podman looks into /etc for what it trusts: into one of ours, over the machine's own.
measure_commands() {
	mkdir -p "$work/etc" "$work/etc-work"
	mount -t overlay overlay -o "lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc-work" /etc
	mkdir -p /etc/containers
	echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
	say "podhold run, podman"
	python3 "$here/standalone.py" --podhold "$podhold/podhold" --peer "$cache/peer" \
		--image "$registry/bench/busybox:1" --hosts "$work/hosts" --scratch "$work/standalone" --runs "$reps" \
		--out "$results/standalone.json"
	umount /etc
}

floor() {
	say "floor: kernel work alone, and network plugins alone"
	"$cache/bin/floor" -n 100 -noveth >"$results/floor-bridge.txt"
	"$cache/bin/floor" -n 100 -nonet >"$results/floor-host.txt"
	python3 "$here/plugins.py" "$work/cni/10-bench.conflist" --runs "$reps" >"$results/plugins.json"
	ip link delete "$bridge" 2>/dev/null || true
}

# Those of the parts that are among $1.
chosen() {
	got=""
	for part in ${parts//,/ }; do
		case ",$1," in
		*",$part,"*) got="$got,$part" ;;
		esac
	done
	echo "${got#,}"
}

export PATH="$cache/peer/usr/bin:$cache/peer/usr/sbin:$PATH"
serve_images
[ -z "$(chosen floor)" ] || floor
cri_parts="$(chosen version,pods,containers,cycle,many,streams)"
fault_parts="$(chosen busy,crash,recovery)"
for name in ${runtimes//,/ }; do
	disk="$work"
	[ -z "$cri_parts" ] || measure "$name" "$name" "$cri_parts"
	[ -z "$fault_parts" ] || measure_faults "$name"
	if [ -n "$(chosen pull)" ]; then
		make_disk "$name"
		measure "$name" "$name-pull" pull
		remove_disk
	fi
done
disk="$work"
[ -z "$(chosen builtin)" ] || measure builtin builtin cycle,many
[ -z "$(chosen run)" ] || measure_commands
