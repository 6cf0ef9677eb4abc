#!/usr/bin/env python3
"""Measure commands that run one pod from a manifest, from their start to their exit.

  standalone.py --podhold PROGRAM --peer DIR --image 127.0.0.1:5000/bench/busybox:1 --hosts DIR --scratch DIR --out OUT.json

The pod has one container, which is `true`, and a network of its own.  The image is there before.  Podman's
`kube play` comes back before the container has ended: its row is kube play, wait and kube down together.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import time

MANIFEST = """apiVersion: v1
kind: Pod
metadata:
  name: bench
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: %s
    imagePullPolicy: IfNotPresent
    command: ["true"]
"""


ENGINE = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["PEER/usr/bin/conmon"]
helper_binaries_dir = ["PEER/usr/lib/podman", "PEER/usr/libexec/podman", "PEER/usr/bin"]
[engine.runtimes]
runc = ["PEER/usr/sbin/runc"]
[network]
network_backend = "netavark"
"""


def told(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


class Peer:
    """Podman, unpacked into a directory, with directories of its own."""

    def __init__(self, unpacked, scratch, registry):
        place = os.path.join(scratch, "podman")
        os.makedirs(place)
        registries = '[[registry]]\nlocation = "%s"\ninsecure = true\n' % registry
        self.environment = dict(
            os.environ,
            PATH="%s/usr/bin:%s/usr/sbin:%s" % (unpacked, unpacked, os.environ["PATH"]),
            LD_LIBRARY_PATH=":".join(glob.glob(unpacked + "/usr/lib/*-linux-gnu")),
            CONTAINERS_REGISTRIES_CONF=told(os.path.join(place, "registries.conf"), registries),
            CONTAINERS_CONF=told(os.path.join(place, "containers.conf"),
                                 ENGINE.replace("PEER", unpacked)))
        # Its sockets' names must be short.
        self.command = [unpacked + "/usr/bin/podman", "--root", place + "/root", "--runroot", "/run/bench-podman",
                        "--tmpdir", "/run/bench-podman/tmp", "--network-config-dir", place + "/networks"]

    def do(self, *words):
        run(self.command + list(words), self.environment)


def run(command, environment=None):
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=120)
    if done.returncode:
        raise RuntimeError("%s: %d: %s" % (" ".join(command), done.returncode, done.stderr.decode()[-600:]))


def timed(work, runs):
    """Milliseconds of each run but the first two."""
    got = []
    for turn in range(runs + 2):
        begun = time.perf_counter()
        work()
        if turn > 1:
            got.append((time.perf_counter() - begun) * 1e3)
    return got


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("podhold", "peer", "image", "hosts", "scratch", "out"):
        ap.add_argument("--" + name, required=True)
    ap.add_argument("--runs", type=int, default=25)
    args = ap.parse_args()
    os.makedirs(args.scratch)
    manifest = told(os.path.join(args.scratch, "pod.yaml"), MANIFEST % args.image)
    config = told(os.path.join(args.scratch, "config.toml"),
                  '[network]\nkind = "bridge"\n[image]\nhosts_dir = "%s"\n' % args.hosts)
    ours = [args.podhold, "run", "--config", config, "--run-dir", "/run/podhold-bench-run",
            "--state-dir", args.scratch + "/podhold", manifest]
    rows = {"podhold run": timed(lambda: run(ours), args.runs)}
    peer = Peer(args.peer, args.scratch, args.image.split("/")[0])

    def play():
        peer.do("kube", "play", manifest)
        peer.do("wait", "bench-main")
        peer.do("kube", "down", manifest)
    try:
        peer.do("pull", args.image)
        rows["podman run --rm"] = timed(lambda: peer.do("run", "--rm", args.image, "true"), args.runs)
        rows["podman kube play"] = timed(play, args.runs)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print("# podman: %s" % error, file=sys.stderr)
    with open(args.out, "w") as f:
        json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
