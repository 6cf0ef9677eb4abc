"""How long a runtime is away when its daemon is killed, against the number of pods.

From the exec of the new daemon to the first ListContainers that says Running of every container.
"""
import concurrent.futures
import os
import signal
import time

import grpc

from daemon import shims

REPEAT = 5
LIMIT = 60


class Recovery:
    """Part of faults.py; mixed into it."""

    def running(self):
        state = self.pb.ContainerState.Value("CONTAINER_RUNNING")
        answer = self.rt.ListContainers(self.pb.ListContainersRequest(), timeout=LIMIT)
        return sum(c.state == state for c in answer.containers)

    def come_back(self, want):
        """Seconds until it listens, until it answers a list, and until so many run; None: not in time."""
        d, listens, answers = self.daemon, None, None
        end = d.begun + LIMIT
        while time.perf_counter() < end:
            if not d.listens(end - time.perf_counter()):
                break
            listens = listens or time.perf_counter() - d.begun
            try:
                self.connect(timeout=5)
                while time.perf_counter() < end:
                    got = self.running()
                    now = time.perf_counter() - d.begun
                    answers = answers or now
                    if got >= want:
                        return {"listens": listens, "answers": answers, "all": now}
                    time.sleep(0.002)
            except (grpc.RpcError, grpc.FutureTimeoutError):
                time.sleep(0.002)
        return {"listens": listens, "answers": answers, "all": None}

    def restart(self, want):
        self.daemon.kill()
        self.daemon.start()
        return self.come_back(want)

    def m_recovery(self):
        got, pods = [], []
        self.facts["recovery"] = got
        base = self.running()
        with concurrent.futures.ThreadPoolExecutor(self.args.parallel) as pool:
            for count in self.args.recover:
                begin = time.perf_counter()
                pods += pool.map(lambda _: self.one_pod(host=True), range(count - len(pods)))
                made = time.perf_counter() - begin
                time.sleep(1)
                runs = [self.restart(base + count) for _ in range(REPEAT)]
                got.append({"pods": count, "made in": made, "runs": runs})
                self.say("recovery of %d pods: %s" % (count, [run["all"] for run in runs]))
                self.save()
                if count == self.args.recover_bad:
                    self.facts["one bad pod"] = self.bad_pod(pods[-1][0], base + count)
                    self.save()
            begin = time.perf_counter()
            list(pool.map(self.drop_pod, pods))
            self.facts["removed in"] = time.perf_counter() - begin

    def bad_pod(self, pod, want):
        """The same while the shim of one pod is stopped: neither dead nor answering."""
        pids = list(shims(pod))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            others = self.restart(want - 1)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        released = time.perf_counter() - self.daemon.begun
        healed = self.come_back(want)["all"]
        return {"pods": want, "stopped": len(pids), "others": others, "healed after": healed and healed - released}
