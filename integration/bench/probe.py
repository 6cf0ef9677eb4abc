#!/usr/bin/env python3
"""Ask a runtime what it knows, again and again, and write how long each answer took.

Started by busy.py while others keep the runtime busy; ends when its stdin does.  It runs before other
processes (SCHED_FIFO), so that what is measured is the daemon's wait for a processor and not its own.  Beside
the RPCs it asks a process that does nothing but echo, in a control group like the daemon's: what the machine
itself takes.
"""
import argparse
import json
import os
import select
import socket
import sys
import time

from client import Client
from machine import cgroup_enter

ECHO = "/cribench-echo"  # its control group


def echo():
    """A socket on which everything comes back."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        cgroup_enter(ECHO)
        while True:
            data = theirs.recv(64)
            if not data:
                os._exit(0)
            theirs.sendall(data)
    theirs.close()
    return ours


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--proto", required=True)
    ap.add_argument("--endpoint", required=True)
    ap.add_argument("--pod", required=True)
    ap.add_argument("--container", required=True)
    ap.add_argument("--pause", type=float, default=0.005, help="seconds between rounds")
    args = ap.parse_args()
    other = echo()
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    client = Client(args)
    pb, rt = client.pb, client.rt
    calls = [
        ("Version", rt.Version, pb.VersionRequest(version="v1")),
        ("ListPodSandbox", rt.ListPodSandbox, pb.ListPodSandboxRequest()),
        ("ListContainers", rt.ListContainers, pb.ListContainersRequest()),
        ("PodSandboxStatus", rt.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=args.pod)),
        ("ContainerStatus", rt.ContainerStatus, pb.ContainerStatusRequest(container_id=args.container)),
        ("Status", rt.Status, pb.StatusRequest()),
        ("ListContainerStats", rt.ListContainerStats, pb.ListContainerStatsRequest()),
    ]
    took = {name: [] for name, _, _ in calls}
    took["echo"] = []
    failed = {}
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], args.pause)[0]:
        begin = time.perf_counter()
        other.sendall(b"x")
        other.recv(64)
        took["echo"].append((time.perf_counter() - begin) * 1e3)
        for name, call, request in calls:
            begin = time.perf_counter()
            try:
                call(request, timeout=10)
            except Exception as e:
                failed.setdefault(name, []).append(str(e)[:200])
            took[name].append((time.perf_counter() - begin) * 1e3)
    json.dump({"took": took, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()
