#!/usr/bin/env python3
"""Measure what a CRI runtime does under faults, and write every sample as JSON.

It starts the daemon itself, kills it and starts it again.  run.sh does all that is needed around it.

  faults.py --proto api.proto --endpoint unix:///run/x.sock --out x.json --image ... --parts busy,crash \\
            --scratch /var/tmp/x --ipam /var/tmp/x/ipam --writer .cache/bench/bin/writer -- podhold serve ...
"""
import argparse
import json
import os
import shutil
import time

import grpc

from busy import Busy
from client import Client
from crash import Crash
from daemon import Daemon
from machine import cgroup_remove, machine_cpu
from recovery import Recovery


class Faults(Client, Busy, Recovery, Crash):
    """What is measured."""

    def __init__(self, args):
        self.daemon = Daemon(args.command, args.endpoint, args.log)
        self.daemon.start()
        self.daemon.listens(60)
        super().__init__(args)

    def say(self, text):
        print("# " + text, flush=True)

    def go(self):
        a = self.args
        self.ready()
        v = self.rt.Version(self.pb.VersionRequest(version="v1"))
        self.facts["runtime"] = "%s %s" % (v.runtime_name, v.runtime_version)
        self.image_id = self.pull(a.image)
        try:
            for part in a.parts.split(","):
                self.part(part)
                self.save()
        finally:
            self.clean()
            self.daemon.end()
            cgroup_remove(a.cgroup_parent)
            shutil.rmtree(self.logs, ignore_errors=True)

    def part(self, part):
        """One part, with how busy the machine was just before."""
        a = machine_cpu()
        time.sleep(1)
        b = machine_cpu()
        begin = time.time()
        try:
            getattr(self, "m_" + part)()
        except Exception as e:          # the other parts are worth having all the same
            why = e.details() if isinstance(e, grpc.RpcError) else repr(e)
            self.facts.setdefault("failed", []).append("%s: %s" % (part, why[:400]))
            self.say("%s failed: %s" % (part, why[:400]))
            self.come_up_if_needed()
        self.facts.setdefault("machine", {})[part] = {
            "seconds": round(time.time() - begin, 1),
            "busy % just before": round(100 * (b[0] - a[0]) / (b[1] - a[1]), 1)}
        self.say("%s: %s" % (part, self.facts["machine"][part]))

    def save(self):
        """All samples so far."""
        with open(self.args.out, "w") as f:
            json.dump({"args": vars(self.args), "facts": self.facts,
                       "host": {"kernel": os.uname().release, "cpus": os.cpu_count(),
                                "time": time.strftime("%FT%TZ", time.gmtime())}}, f, indent=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--endpoint", required=True)
    ap.add_argument("--proto", required=True, help="the CRI v1 api.proto")
    ap.add_argument("--image", required=True, help="an image with sh and sleep")
    ap.add_argument("--pull", action="append", default=[], help="image to pull while the runtime is busy; may repeat")
    ap.add_argument("--out", required=True, help="write JSON with every sample here")
    ap.add_argument("--log", required=True, help="the daemon's output is appended here")
    ap.add_argument("--parts", default="busy,crash,recovery")
    ap.add_argument("--scratch", required=True, help="a directory for what the host shares with containers")
    ap.add_argument("--ipam", required=True, help="the directory of the host-local plugin")
    ap.add_argument("--writer", required=True, help="the program made from writer.c")
    ap.add_argument("--recover", type=lambda text: [int(n) for n in text.split(",")], default=[1, 10, 50, 100],
                    help="numbers of pods to recover, ascending")
    ap.add_argument("--recover-bad", type=int, default=100, help="among so many pods one is stopped")
    ap.add_argument("--cgroup-parent", default="/cribench")
    ap.add_argument("--runtime-handler", default="")
    ap.add_argument("--seccomp", choices=("default", "unconfined"), default="default")
    ap.add_argument("--parallel", type=int, default=8)
    ap.add_argument("--timeout", type=float, default=300)
    ap.add_argument("command", nargs="+", help="the daemon")
    Faults(ap.parse_args()).go()


if __name__ == "__main__":
    main()
