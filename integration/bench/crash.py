"""What is lost when a runtime's daemon is killed: exit codes and reasons, lines of logs, exec'd processes,
and what half a RunPodSandbox leaves.

Everything is judged by what the CRI says afterwards and by what the host shows; no runtime's files are read.
"""
import glob
import os
import re
import statistics
import threading
import time

import grpc

from daemon import leftovers
from machine import cgroup_remove, processes

KILLS, ROTATIONS, RATE = 50, 20, 10000
HALF_PODS, EXECS = 20, 5
# Seconds for which the daemon is dead while containers end.
AWAY = (2, 2, 2, 2, 2, 30)
LINE = re.compile(rb"^\S+ stdout F line (\d{9}) at (\d{15}) end$")
LIMIT = 60


def finished(status):
    return status.finished_at / 1e9


class Crash:
    """Part of faults.py; mixed into it."""

    def writer(self, pod, cfg, name, command, memory=0):
        """A container that runs writer.c; its directory /hold is the host's self.hold."""
        request = self.container_config(host=True)
        request.metadata.name, request.log_path = name, name + ".log"
        del request.command[:]
        request.command.extend(["/writer"] + command)
        request.mounts.add(container_path="/writer", host_path=self.args.writer, readonly=True)
        request.mounts.add(container_path="/hold", host_path=self.hold)
        if memory:
            request.linux.resources.memory_limit_in_bytes = memory
        ctr = self.rt.CreateContainer(self.pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=request, sandbox_config=cfg)).container_id
        self.start(ctr)
        return ctr

    def come_up(self):
        """Starts the daemon again and waits until it answers as before."""
        self.daemon.start()
        end = time.perf_counter() + LIMIT
        while time.perf_counter() < end:
            try:
                if self.daemon.listens(LIMIT):
                    self.connect(timeout=5)
                    self.rt.ListContainers(self.pb.ListContainersRequest(), timeout=LIMIT)
                    return
            except (grpc.RpcError, grpc.FutureTimeoutError):
                pass
            time.sleep(0.002)
        raise RuntimeError("daemon does not answer %d s after it was started" % LIMIT)

    def status(self, ctr):
        return self.rt.ContainerStatus(self.pb.ContainerStatusRequest(container_id=ctr)).status

    def m_crash(self):
        self.hold = os.path.join(self.args.scratch, "hold")
        os.makedirs(self.hold, exist_ok=True)
        facts = self.facts["crash"] = {}
        for name in ("exits", "logs", "execs", "half_pods"):
            try:
                facts[name] = getattr(self, "lose_" + name)()
            except Exception as e:
                why = e.details() if isinstance(e, grpc.RpcError) else repr(e)
                self.facts.setdefault("failed", []).append("%s: %s" % (name, why[:300]))
                self.come_up_if_needed()
            self.say("%s: %s" % (name, facts.get(name)))
            self.save()

    def come_up_if_needed(self):
        if self.daemon.process.poll() is not None:
            self.come_up()
        self.clean()

    # -- exits while nobody looks

    def lose_exits(self):
        """Ends that come while the daemon is dead: (what, code, reason, by how many seconds the time is off)."""
        got = []
        for turn, away in enumerate(AWAY):
            cfg = self.pod_config(host=True)
            pod, _ = self.run_pod(cfg)
            go = "/hold/go%d" % turn
            kinds = {
                "exit 9": self.writer(pod, cfg, "nine", ["exit", go, "9"]),
                "exit 0": self.writer(pod, cfg, "zero", ["exit", go, "0"]),
                "OOM": self.writer(pod, cfg, "oom", ["oom", go], memory=16 << 20),
            }
            self.daemon.kill()
            open(os.path.join(self.hold, "go%d" % turn), "w").close()
            time.sleep(away)
            ended = os.stat(os.path.join(self.hold, "go%d.9" % turn)).st_mtime
            self.come_up()
            state = self.pb.ContainerState.Value("CONTAINER_EXITED")
            for kind, ctr in kinds.items():
                end = time.perf_counter() + 5
                while self.status(ctr).state != state and time.perf_counter() < end:
                    time.sleep(0.02)
                s = self.status(ctr)
                got.append(("%s, %d s" % (kind, away), s.exit_code if s.state == state else None, s.reason, finished(s) - ended))
            self.stop_pod(pod)
            self.remove_pod(pod)
        return got

    # -- lines

    def lose_logs(self):
        """A container writes numbered lines; the daemon is killed and its log rotated meanwhile."""
        cfg = self.pod_config(host=True)
        pod, _ = self.run_pod(cfg)
        log = os.path.join(cfg.log_directory, "lines.log")
        ctr = self.writer(pod, cfg, "lines", ["lines", str(RATE), "/hold/count"])
        time.sleep(1)
        rotated, away, refused = 0, [], 0
        for kill in range(KILLS):
            self.daemon.kill()
            begin = time.perf_counter()
            self.come_up()
            away.append(time.perf_counter() - begin)
            time.sleep(0.2)
            if kill * ROTATIONS // KILLS != (kill + 1) * ROTATIONS // KILLS:
                rotated += 1
                os.rename(log, "%s.%03d" % (log, rotated))
                try:
                    self.rt.ReopenContainerLog(self.pb.ReopenContainerLogRequest(container_id=ctr), timeout=20)
                except grpc.RpcError:
                    refused += 1
        time.sleep(1)
        self.rt.StopContainer(self.pb.StopContainerRequest(container_id=ctr, timeout=10), timeout=60)
        count = os.path.join(self.hold, "count")
        wrote = open(count).read().split() if os.path.exists(count) else ["0", "was killed"]
        got = self.judge_log(sorted(glob.glob(log + ".*")) + [log], int(wrote[0]))
        got.update({"ended": " ".join(wrote[1:]), "away": away, "rotated": rotated, "refused": refused})
        self.stop_pod(pod)
        self.remove_pod(pod)
        return got

    @staticmethod
    def judge_log(files, wrote):
        """Missing, doubled, torn and misplaced lines, and how long the container was kept from writing."""
        seen, torn, order, last, last_at, gaps = bytearray(max(wrote, 1) + 1), 0, 0, -1, None, []
        doubled = beyond = 0
        for path in files:
            if not os.path.exists(path):
                continue
            with open(path, "rb") as f:
                for line in f:
                    found = LINE.match(line.rstrip(b"\n")) if line.endswith(b"\n") else None
                    if not found:
                        torn += 1
                        continue
                    n, at = int(found[1]), int(found[2])
                    if n >= wrote:
                        beyond += 1
                        continue
                    doubled += seen[n]
                    seen[n] = 1
                    order += n < last
                    if last_at is not None and n == last + 1 and at - last_at > 10_000_000:
                        gaps.append((at - last_at) / 1e6)
                    last, last_at = n, at
        return {"lines": wrote, "missing": wrote - sum(seen), "doubled": doubled, "torn": torn, "misplaced": order,
                "beyond": beyond, "gaps over 10 ms": len(gaps), "longest gap, ms": max(gaps, default=0),
                "all gaps, ms": sum(gaps)}

    # -- commands

    def lose_execs(self):
        """Commands that run when the daemon is killed: how many are there after its return."""
        pair = self.one_pod(host=True)
        left = []
        for turn in range(EXECS):
            marker = "sleep 86401%d" % turn
            here = lambda: [pid for pid, (_, _, cmd) in processes().items() if cmd == marker]

            def execute():
                try:
                    self.rt.ExecSync(self.pb.ExecSyncRequest(container_id=pair[1], cmd=marker.split()), timeout=60)
                except grpc.RpcError:
                    pass
            caller = threading.Thread(target=execute, daemon=True)
            caller.start()
            end = time.perf_counter() + 10
            while not here() and time.perf_counter() < end:
                time.sleep(0.01)
            self.daemon.kill()
            caller.join(20)
            self.come_up()
            time.sleep(2)
            left.append(len(here()))
        self.drop_pod(pair)
        return {"commands": EXECS, "left": sum(left)}

    # -- half a pod

    def lose_half_pods(self):
        """RunPodSandbox cut off; then every pod that is listed is stopped and removed: what stays?"""
        parents = (self.args.cgroup_parent, "/podhold-bench")
        samples = []
        for _ in range(5):
            cfg = self.pod_config()
            pod, ms = self.run_pod(cfg)
            samples.append(ms / 1e3)
            self.stop_pod(pod)
            self.remove_pod(pod)
        usual = statistics.median(samples)
        time.sleep(2)
        before = leftovers(parents, self.args.ipam)
        groups, answered = [], 0
        for turn in range(HALF_PODS):
            cfg = self.pod_config()
            groups.append(cfg.linux.cgroup_parent)
            outcome = []

            def run():
                try:
                    self.rt.RunPodSandbox(self.pb.RunPodSandboxRequest(config=cfg), timeout=30)
                    outcome.append(True)
                except grpc.RpcError:
                    pass
            caller = threading.Thread(target=run, daemon=True)
            caller.start()
            time.sleep(usual * (turn + 0.5) / HALF_PODS)
            self.daemon.kill()
            caller.join(30)
            answered += len(outcome)
            self.come_up()
        listed = self.rt.ListPodSandbox(self.pb.ListPodSandboxRequest()).items
        errors = []
        for pod in listed:
            for step in (self.stop_pod, self.remove_pod):
                try:
                    step(pod.id)
                except grpc.RpcError as e:
                    errors.append((e.details() or "")[:200])
        time.sleep(3)
        still = self.rt.ListPodSandbox(self.pb.ListPodSandboxRequest()).items
        for group in groups:
            cgroup_remove(group)
        after = leftovers(parents, self.args.ipam)
        left = {kind: sorted(after[kind] - before[kind]) for kind in after}
        return {"usual ms": usual * 1e3, "answered": answered, "listed": len(listed), "still listed": len(still),
                "errors": errors, "left": {kind: len(names) for kind, names in left.items()},
                "for example": {kind: names[:2] for kind, names in left.items() if names}}
