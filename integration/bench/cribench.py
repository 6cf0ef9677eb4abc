#!/usr/bin/env python3
"""Measure a CRI runtime through its socket, and write every sample as JSON.

Needs Python with grpcio and grpcio-tools, and the CRI api.proto.  Run it as root on the runtime's own
machine; run.sh does all that is needed around it.

  cribench.py --proto api.proto --endpoint unix:///run/x.sock --daemon-pid 123 --out x.json \\
              --image 127.0.0.1:5000/bench/busybox:1 --pull 127.0.0.1:5000/bench/pull-1:1

Every row is wall time of one RPC, or of a named sum of RPCs, as this client sees it.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import sys
import time
import urllib.request

import grpc

from client import SLEEP, Client
from machine import (cgroup_remove, cpu_seconds, forget_peak, machine_cpu, meminfo, peak_memory, processes,
                     rollup)
from streams import Streams


class Bench(Client, Streams):
    """What is measured."""

    def m_version(self):
        req = self.pb.VersionRequest(version="v1")
        for _ in range(50):
            self.rt.Version(req)
        for _ in range(500):
            self.timed("Version (client floor)", self.rt.Version, req)

    def m_pods(self):
        for host, tag in ((False, "bridge"), (True, "host net")):
            def body(keep, host=host, tag=tag):
                n = (lambda s: s if keep else None)
                pod, _ = self.run_pod(self.pod_config(host), n("RunPodSandbox, " + tag))
                self.stop_pod(pod, n("StopPodSandbox, " + tag))
                self.remove_pod(pod, n("RemovePodSandbox, " + tag))
            self.repeat(body)

    def m_containers(self):
        cfg = self.pod_config()
        pod, _ = self.run_pod(cfg)

        def body(keep):
            n = (lambda s: s if keep else None)
            ctr, a = self.create(pod, cfg, n("CreateContainer"))
            b = self.start(ctr, n("StartContainer"))
            if keep:
                self.note("Create+StartContainer", a + b)
            self.stop(ctr, n("StopContainer (kill)"))
            self.remove(ctr, n("RemoveContainer"))
        self.repeat(body)

        ctr, _ = self.create(pod, cfg)
        self.start(ctr)

        # Back to back, and as a probe comes: after a pause, when nothing is warm.
        for gap, tag in ((0, "back to back"), (1.0, "one per second")):
            def execute(keep, gap=gap, tag=tag):
                time.sleep(gap)
                out, _ = self.timed("ExecSync true, " + tag if keep else None, self.rt.ExecSync,
                                    self.pb.ExecSyncRequest(container_id=ctr, cmd=["true"], timeout=20))
                if out.exit_code:
                    raise RuntimeError("exec of true gave %d" % out.exit_code)
            self.repeat(execute)
        self.stop(ctr)
        self.stop_pod(pod)
        self.remove_pod(pod)

    def m_cycle(self):
        for host, tag in ((False, "bridge"), (True, "host net")):
            def body(keep, host=host, tag=tag):
                c0 = cpu_seconds(self.args.daemon_pid)
                cfg = self.pod_config(host)
                pod, t = self.run_pod(cfg)
                ctr, ms = self.create(pod, cfg, host=host)
                up = t + ms + self.start(ctr)
                t = up + self.stop(ctr)
                t += self.stop_pod(pod)
                t += self.remove_pod(pod)
                if keep:
                    self.note("Pod up (run+create+start), " + tag, up)
                    self.note("Pod cycle (up+stop+remove), " + tag, t)
                    self.note("Daemon CPU per cycle, " + tag, (cpu_seconds(self.args.daemon_pid) - c0) * 1e3)
            self.repeat(body)

    def m_many(self):
        a, pb = self.args, self.pb
        rates, falls = [], []
        with concurrent.futures.ThreadPoolExecutor(a.parallel) as pool:
            list(pool.map(self.drop_pod, list(pool.map(self.one_pod, range(a.parallel)))))   # warm-up
            time.sleep(2)
            idle = rollup(a.daemon_pid) if a.daemon_pid else {}
            before, mem0 = set(processes()), meminfo()
            for turn in range(a.rounds):
                t = time.perf_counter()
                pods = list(pool.map(self.one_pod, range(a.pods)))
                dt = time.perf_counter() - t
                rates.append(a.pods / dt)
                if turn == 0:
                    time.sleep(2)
                    self.memory(idle, before, mem0)
                    for name, call, req in (
                            ("ListContainers, %d pods", self.rt.ListContainers, pb.ListContainersRequest()),
                            ("ListPodSandbox, %d pods", self.rt.ListPodSandbox, pb.ListPodSandboxRequest()),
                            ("ListContainerStats, %d pods", self.rt.ListContainerStats,
                             pb.ListContainerStatsRequest()),
                            ("ContainerStatus, %d pods", self.rt.ContainerStatus,
                             pb.ContainerStatusRequest(container_id=pods[0][1])),
                            ("PodSandboxStatus, %d pods", self.rt.PodSandboxStatus,
                             pb.PodSandboxStatusRequest(pod_sandbox_id=pods[0][0]))):
                        for i in range(5 + max(a.runs, 30)):
                            try:
                                self.timed(name % a.pods if i >= 5 else None, call, req)
                            except Exception as e:          # an RPC that a runtime lacks
                                self.facts.setdefault("failed", []).append(
                                    "%s: %s" % (name % a.pods, str(e)[:200]))
                                break
                t = time.perf_counter()
                list(pool.map(self.drop_pod, pods))
                falls.append(a.pods / (time.perf_counter() - t))
        self.facts["pods per second up, %d pods, %d at a time" % (a.pods, a.parallel)] = rates
        self.facts["pods per second down, %d pods, %d at a time" % (a.pods, a.parallel)] = falls

    def memory(self, idle, before, mem0):
        """Memory that the pods cost beyond the containers' own processes."""
        a, now, mem1 = self.args, processes(), meminfo()
        want = re.compile(a.helpers)

        def below_daemon(pid):
            while pid in now and pid > 1:
                if pid == a.daemon_pid:
                    return True
                pid = now[pid][0]
            return False

        groups, marker = {}, " ".join(SLEEP)
        for pid, (_, name, cmd) in now.items():
            if pid in before or pid == a.daemon_pid or cmd.endswith(marker):
                continue
            if not (want.search(name) or want.search(cmd.split(" ")[0]) or below_daemon(pid)):
                continue
            r = rollup(pid)
            g = groups.setdefault(name, {"count": 0, "rss": 0, "pss": 0, "private": 0})
            g["count"] += 1
            for k in r:
                g[k] += r[k]
        loaded = rollup(a.daemon_pid) if a.daemon_pid else {}
        n = a.pods
        self.facts["memory, KiB"] = {
            "daemon idle": idle, "daemon with %d pods" % n: loaded, "helper processes": groups,
            "helpers' PSS per pod": round(sum(g["pss"] for g in groups.values()) / n, 1),
            "daemon's PSS growth per pod": round((loaded.get("pss", 0) - idle.get("pss", 0)) / n, 1),
            "helpers + daemon growth, PSS per pod": round(
                (sum(g["pss"] for g in groups.values()) + loaded.get("pss", 0) - idle.get("pss", 0)) / n, 1),
            "MemAvailable lost per pod (whole machine, noisy)":
                round((mem0["MemAvailable"] - mem1["MemAvailable"]) / n, 1),
            "Slab growth per pod (whole machine, noisy)": round((mem1["Slab"] - mem0["Slab"]) / n, 1),
        }

    def compressed_size(self, image):
        """Sum of layer sizes by the registry's own account (plain HTTP, host:port names)."""
        host, rest = image.split("/", 1)
        repo, tag = rest.rsplit(":", 1)
        req = urllib.request.Request("http://%s/v2/%s/manifests/%s" % (host, repo, tag), headers={
            "Accept": "application/vnd.oci.image.manifest.v1+json,"
                      "application/vnd.docker.distribution.manifest.v2+json"})
        with urllib.request.urlopen(req, timeout=20) as r:
            return sum(l["size"] for l in json.load(r)["layers"])

    def m_pull(self):
        """Pulls onto the disk, and pulls of what is there, with the most memory that the daemon had meanwhile."""
        pb = self.pb
        for image in self.args.pull:
            size = self.compressed_size(image)
            rows = []
            for i in range(self.args.pull_runs + 1):
                self.im.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=120)
                os.sync()
                time.sleep(1)
                forget_peak(self.args.daemon_pid)
                c = cpu_seconds(self.args.daemon_pid)
                t = time.perf_counter()
                self.pull(image)
                dt = time.perf_counter() - t
                c = cpu_seconds(self.args.daemon_pid) - c
                peak = peak_memory(self.args.daemon_pid)
                os.sync()                               # some runtimes leave that to the kernel
                synced = time.perf_counter() - t
                if i:                                   # the first is the warm-up
                    rows.append({"s": dt, "MB/s": size / 1e6 / dt, "MB/s synced": size / 1e6 / synced,
                                 "cpu_s": c, "peak MiB": peak / 1024})
            again = []
            for _ in range(20):
                t = time.perf_counter()
                self.pull(image)
                again.append((time.perf_counter() - t) * 1e3)
            self.im.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=120)
            self.facts.setdefault("pull", {})[image] = {"compressed MB": size / 1e6, "runs": rows, "again ms": again}

    # -- all of it

    def go(self):
        a = self.args
        v = self.rt.Version(self.pb.VersionRequest(version="v1"))
        self.facts["runtime"] = "%s %s" % (v.runtime_name, v.runtime_version)
        self.ready()
        time.sleep(1)
        self.facts["memory at start, KiB"] = rollup(a.daemon_pid)
        self.image_id = self.pull(a.image)
        try:
            for part in a.parts.split(","):
                self.measure(part)
                self.save()
        finally:
            self.clean()
            cgroup_remove(a.cgroup_parent)
            shutil.rmtree(self.logs, ignore_errors=True)

    def save(self):
        """All samples so far: a run that is interrupted is worth something too."""
        with open(self.args.out, "w") as f:
            json.dump({"args": vars(self.args), "rows_ms": self.rows, "facts": self.facts,
                       "host": {"kernel": os.uname().release, "cpus": os.cpu_count(),
                                "load": os.getloadavg(), "time": time.strftime("%FT%TZ", time.gmtime())}},
                      f, indent=1)

    def measure(self, part):
        """One part, with how busy the machine was just before: others' noise spoils a comparison."""
        end = time.monotonic() + self.args.quiet
        while True:
            b0 = machine_cpu()
            time.sleep(1)
            b1 = machine_cpu()
            noise = 100 * (b1[0] - b0[0]) / (b1[1] - b0[1])
            if noise < 15 or time.monotonic() > end:
                break
        t = time.time()
        try:
            getattr(self, "m_" + part)()
        except Exception as e:          # the other parts are worth having all the same
            why = e.details() if isinstance(e, grpc.RpcError) else repr(e)
            self.facts.setdefault("failed", []).append("%s: %s" % (part, why[:400]))
            print("# %s failed: %s" % (part, why[:400]), file=sys.stderr, flush=True)
            self.clean()
        b2 = machine_cpu()
        self.facts.setdefault("machine", {})[part] = {
            "seconds": round(time.time() - t, 1), "busy % just before": round(noise, 1),
            "busy % during": round(100 * (b2[0] - b1[0]) / (b2[1] - b1[1]), 1)}
        print("# %s: %s" % (part, self.facts["machine"][part]), file=sys.stderr, flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--endpoint", required=True)
    ap.add_argument("--proto", required=True, help="the CRI v1 api.proto")
    ap.add_argument("--image", required=True, help="an image with sh, sleep and true")
    ap.add_argument("--runs", type=int, default=25)
    ap.add_argument("--warmup", type=int, default=3)
    ap.add_argument("--out", required=True, help="write JSON with every sample here")
    ap.add_argument("--daemon-pid", type=int, default=0)
    ap.add_argument("--runtime-handler", default="")
    ap.add_argument("--cgroup-parent", default="/cribench")
    ap.add_argument("--seccomp", choices=("default", "unconfined"), default="default")
    ap.add_argument("--pods", type=int, default=50)
    ap.add_argument("--parallel", type=int, default=8)
    ap.add_argument("--rounds", type=int, default=5, help="how often the many pods are started")
    ap.add_argument("--helpers", default="shim|conmon|pause|pinns",
                    help="names of per-pod processes that are not the daemon's descendants")
    ap.add_argument("--pull", action="append", default=[], help="image for pull timing; may repeat")
    ap.add_argument("--pull-runs", type=int, default=5)
    ap.add_argument("--stream-runs", type=int, default=5)
    ap.add_argument("--parts", default="version,pods,containers,cycle,many,streams,pull")
    ap.add_argument("--quiet", type=float, default=30, help="seconds to wait for an idle machine, each part")
    ap.add_argument("--timeout", type=float, default=300)
    args = ap.parse_args()
    bench = Bench(args)
    bench.go()


if __name__ == "__main__":
    main()
