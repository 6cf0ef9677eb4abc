#!/usr/bin/env python3
"""Time a CNI chain by itself: what no runtime that calls plugins can leave out.

  plugins.py 10-bench.conflist --runs 25

Prints JSON: milliseconds of each ADD and DEL of the whole chain, in a network namespace made before.
"""
import argparse
import json
import os
import subprocess
import time


def call(plugin, command, network, previous, container, bin_dir):
    """Runs one plugin as the CNI specification says, and answers what it printed."""
    config = dict(plugin, cniVersion=network["cniVersion"], name=network["name"])
    if previous is not None:
        config["prevResult"] = previous
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": "/run/netns/" + container,
           "CNI_IFNAME": "eth0", "CNI_PATH": bin_dir, "PATH": os.environ["PATH"]}
    run = subprocess.run([os.path.join(bin_dir, plugin["type"])], input=json.dumps(config).encode(), env=env,
                         stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout) if run.stdout.strip() else None


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("conflist")
    ap.add_argument("--runs", type=int, default=25)
    ap.add_argument("--bin-dir", default="/usr/lib/cni")
    args = ap.parse_args()
    with open(args.conflist) as f:
        network = json.load(f)
    adds, dels = [], []
    for run in range(args.runs + 3):
        container = "plugins-%d" % run
        subprocess.run(["ip", "netns", "add", container], check=True)
        t0 = time.perf_counter()
        result = None
        for plugin in network["plugins"]:
            result = call(plugin, "ADD", network, result, container, args.bin_dir)
        t1 = time.perf_counter()
        for plugin in reversed(network["plugins"]):
            call(plugin, "DEL", network, result, container, args.bin_dir)
        t2 = time.perf_counter()
        subprocess.run(["ip", "netns", "delete", container], check=True)
        if run >= 3:                                    # the first are the warm-up
            adds.append((t1 - t0) * 1e3)
            dels.append((t2 - t1) * 1e3)
    print(json.dumps({"ADD": adds, "DEL": dels}))


if __name__ == "__main__":
    main()
