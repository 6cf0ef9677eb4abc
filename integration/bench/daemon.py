"""A runtime's daemon that is started, killed and started again, and what it leaves on the host.

Only the daemon is touched, by its pid: shims and containers are what must survive it.
"""
import os
import signal
import socket
import subprocess
import time

from machine import cgroup_enter, cgroup_roots, processes, slurp

SERVICE = "/cribench-service"  # the daemon's control group


class Daemon:
    def __init__(self, command, endpoint, log):
        self.command, self.log = command, log
        self.socket = endpoint.replace("unix://", "")
        self.process = None
        self.begun = 0.0

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Executes it, in a session and a control group of its own as an init system does; `begun` is when."""
        with open(self.log, "ab") as log:
            self.begun = time.perf_counter()
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            start_new_session=True, preexec_fn=lambda: cgroup_enter(SERVICE))

    def kill(self):
        """As the kernel or an impatient operator would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def listens(self, limit):
        """Waits until somebody accepts on the socket; whether that came to pass."""
        end = time.perf_counter() + limit
        while time.perf_counter() < end:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                try:
                    s.connect(self.socket)
                    return True
                except OSError:
                    pass
            if self.process.poll() is not None:
                raise RuntimeError("daemon has ended with %d; see %s" % (self.process.returncode, self.log))
            time.sleep(0.001)
        return False


def shims(pod=None):
    """Processes that attend pods: pid -> command line; of one pod when it is named."""
    return {pid: cmd for pid, (_, name, cmd) in processes().items()
            if name.startswith(("podhold-shim", "containerd-shim")) and (pod is None or pod in cmd)}


def entries(path, directories=False):
    """What is below a directory, whole paths."""
    got = set()
    for here, dirs, files in os.walk(path):
        got.update(os.path.join(here, name) for name in (dirs if directories else files))
    return got


def leftovers(cgroup_parents, ipam):
    """What a pod is made of, as the host sees it: kind -> set."""
    mounts = [line.split()[4] for line in slurp("/proc/self/mountinfo").splitlines()]
    netns = {m for m in mounts if "/netns/" in m}
    groups = set()
    for root in cgroup_roots():
        for parent in cgroup_parents:
            groups |= entries(os.path.join(root, parent.strip("/")), directories=True)
    return {
        "shims": {str(pid) for pid in shims()},
        "pause": {str(pid) for pid, (_, name, cmd) in processes().items()
                  if name == "pause" or "podhold-p" in name or cmd == "pause"},
        "netns": netns,
        "netns files": entries("/run/netns") | entries("/run/podhold/netns"),
        "addresses": {name for name in entries(ipam) if os.path.basename(name)[:1].isdigit()},
        "veth": {name for name in os.listdir("/sys/class/net") if name.startswith("veth")},
        "cgroups": groups,
        "mounts": {m for m in mounts if "/netns/" not in m},
    }
