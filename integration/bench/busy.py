"""How quickly a runtime tells what it knows while it has much to do.

Eight pods are being started (and removed) at any time, one container is being created whose volume lies on
a file system that hangs, and images are pulled; probe.py asks meanwhile.
"""
import json
import os
import subprocess
import sys
import threading
import time

import grpc

from hung import HungMount
from machine import machine_cpu

STANDING = 50          # pods that are there all the time, so that lists are lists
AT_ONCE = 8


class Busy:
    """Part of faults.py; mixed into it."""

    def probe(self, pod, ctr):
        here = os.path.dirname(os.path.abspath(__file__))
        process = subprocess.Popen(
            [sys.executable, os.path.join(here, "probe.py"), "--proto", self.args.proto, "--endpoint",
             self.args.endpoint, "--pod", pod, "--container", ctr],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    def hang_a_create(self):
        """A CreateContainer that waits for a mount; returns the mount and the call's thread."""
        mount = HungMount(os.path.join(self.args.scratch, "hung"))
        cfg = self.pod_config(host=True)
        pod, _ = self.run_pod(cfg)
        request = self.container_config(host=True)
        request.mounts.add(container_path="/volume", host_path=mount.path)

        released = threading.Event()

        def create():
            """As a kubelet: again when it was refused."""
            while not released.is_set():
                begin = time.perf_counter()
                try:
                    self.rt.CreateContainer(self.pb.CreateContainerRequest(
                        pod_sandbox_id=pod, config=request, sandbox_config=cfg), timeout=600)
                    return
                except grpc.RpcError as e:
                    self.facts.setdefault("hung create", []).append(
                        {"seconds": time.perf_counter() - begin, "error": (e.details() or "")[:300]})
                    released.wait(1)
        thread = threading.Thread(target=create, daemon=True)
        thread.start()
        end = time.perf_counter() + 10
        while not mount.asked() and time.perf_counter() < end:
            time.sleep(0.01)
        if not mount.asked():
            raise RuntimeError("nobody has looked at the mount that hangs")
        return mount, thread, released, pod

    def keep_starting(self, stop, counts):
        while not stop.is_set():
            try:
                pair = self.one_pod()
                counts.append(time.perf_counter())
                self.drop_pod(pair)
            except Exception as e:
                self.facts.setdefault("failed", []).append("busy: %s" % str(e)[:200])
                time.sleep(0.5)

    def m_busy(self):
        standing = [self.one_pod(host=True) for _ in range(STANDING)]
        self.quiet_probe(*standing[0])
        for image in self.args.pull:
            self.im.RemoveImage(self.pb.RemoveImageRequest(image=self.pb.ImageSpec(image=image)), timeout=300)
        os.sync()
        mount, hung, released, hung_pod = self.hang_a_create()
        stop, counts = threading.Event(), []
        starters = [threading.Thread(target=self.keep_starting, args=(stop, counts)) for _ in range(AT_ONCE)]
        for thread in starters:
            thread.start()
        time.sleep(1)
        probe = self.probe(*standing[0])
        cpu, begin, before = machine_cpu(), time.perf_counter(), len(counts)
        for image in self.args.pull:
            self.pull(image)
        seconds = time.perf_counter() - begin
        got = json.loads(probe.communicate(b"")[0])
        used = machine_cpu()
        self.facts["busy"] = dict(
            got, seconds=seconds, pods=len(counts) - before, hung=hung.is_alive(),
            processors=100 * (used[0] - cpu[0]) / (used[1] - cpu[1]))
        stop.set()
        for thread in starters:
            thread.join()
        released.set()
        mount.end()
        hung.join(40)
        self.facts["busy"]["hung create ended"] = not hung.is_alive()
        for pair in standing:
            self.drop_pod(pair)
        self.stop_pod(hung_pod)
        self.remove_pod(hung_pod)

    def quiet_probe(self, pod, ctr):
        """The same without the load."""
        probe = self.probe(pod, ctr)
        time.sleep(5)
        self.facts["quiet"] = json.loads(probe.communicate(b"")[0])
