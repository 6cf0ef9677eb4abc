"""What /proc and cgroupfs say, and a pod's control group as a kubelet makes it."""
import os
import re
import time

TICK = os.sysconf("SC_CLK_TCK")


def slurp(path, mode="r"):
    try:
        with open(path, mode) as f:
            return f.read()
    except OSError:
        return "" if mode == "r" else b""


def processes():
    """pid -> (parent, name, command line)"""
    got = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            st = slurp("/proc/%s/stat" % d)
            if st:
                tail = st.rsplit(")", 1)
                got[int(d)] = (int(tail[1].split()[1]), tail[0].split("(", 1)[1],
                               slurp("/proc/%s/cmdline" % d).replace("\0", " ").strip())
    return got


def rollup(pid):
    """Resident, proportional and private memory of one process, in KiB."""
    vals = dict(re.findall(r"^(\w+):\s+(\d+) kB", slurp("/proc/%d/smaps_rollup" % pid), re.M))
    pick = lambda k: int(vals.get(k, 0))
    return {"rss": pick("Rss"), "pss": pick("Pss"),
            "private": pick("Private_Clean") + pick("Private_Dirty")}


def meminfo():
    return {k: int(v) for k, v in re.findall(r"^(\w+):\s+(\d+) kB", slurp("/proc/meminfo"), re.M)}


def cpu_seconds(pid):
    """User and system time of a process and of the children it has waited for."""
    st = slurp("/proc/%d/stat" % pid)
    if not st:
        return 0.0
    f = st.rsplit(")", 1)[1].split()
    return sum(int(x) for x in f[11:15]) / TICK


def forget_peak(pid):
    """What is resident now is the most there was, from here on (proc_pid_clear_refs(5))."""
    with open("/proc/%d/clear_refs" % pid, "w") as f:
        f.write("5")


def peak_memory(pid):
    """The most that was resident since then, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", slurp("/proc/%d/status" % pid))[1])


def machine_cpu():
    """Machine-wide (busy, total) seconds since boot, summed over the processors."""
    f = [int(x) for x in slurp("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return (sum(f) - f[3] - f[4]) / TICK, sum(f) / TICK


def cgroup_roots():
    """Mount points of every control group hierarchy: v1 controllers and v2."""
    return [f[4] for f in (l.split() for l in slurp("/proc/self/mountinfo").splitlines())
            if f[f.index("-") + 1] in ("cgroup", "cgroup2")]


def cgroup_make(path):
    """Makes a pod's control group everywhere, as a kubelet does before it asks for the pod."""
    for root in cgroup_roots():
        here = root
        for part in path.strip("/").split("/"):
            up, here = here, os.path.join(here, part)
            try:
                os.mkdir(here)
            except FileExistsError:
                continue
            for key in ("cpuset.cpus", "cpuset.mems"):
                if os.path.exists(os.path.join(here, key)) and "cpuset" in root:
                    with open(os.path.join(here, key), "w") as f:
                        f.write(slurp(os.path.join(up, key)))


def cgroup_enter(path):
    """Puts this process into a control group of its own of the processor's hierarchy, as systemd does with a service that
    it delegates to. Without one the kernel shares the processors among sessions (sched_autogroup), which no node does.
    Does nothing where the hierarchy is version 2, whose groups with processes have no groups below."""
    for root in cgroup_roots():
        if "cpu" in os.path.basename(root).split(","):
            here = os.path.join(root, path.strip("/"))
            os.makedirs(here, exist_ok=True)
            with open(os.path.join(here, "cgroup.procs"), "w") as f:
                f.write("0")


def cgroup_remove(path):
    """Removes it and what is left below it; the kubelet's part again."""
    for root in cgroup_roots():
        for here, _, _ in os.walk(os.path.join(root, path.strip("/")), topdown=False):
            for _ in range(200):
                try:
                    os.rmdir(here)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.005)
