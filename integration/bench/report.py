#!/usr/bin/env python3
"""Write what a run of the benchmark has measured as a table in Markdown.

  report.py .cache/bench/results/20261121T051944Z [BENCHMARKS.md]

Prints it.  What stands below the line MARK in the file given is kept: that part is written by hand.
"""
import json
import os
import re
import statistics
import sys

MARK = "<!-- Below this line: written by hand, kept by report.py. -->"
RUNTIMES = ("podhold", "containerd")

# Row, where its samples are, unit, whether more is better, floor, goal (value, and ratio to the better peer).
# A floor is what nobody can leave out; see the text.
ROWS = [
    ("pod up (run+create+start), CNI bridge", "Pod up (run+create+start), bridge", "ms", False, "up", "30 · 3.5×"),
    ("pod up, built-in network", "builtin up", "ms", False, "up", "18"),
    ("pod up, host network", "Pod up (run+create+start), host net", "ms", False, "host up", "14 · 6×"),
    ("whole cycle (up, stop, remove), CNI bridge", "Pod cycle (up+stop+remove), bridge", "ms", False, "cycle",
     "80 · 3×"),
    ("whole cycle, host network", "Pod cycle (up+stop+remove), host net", "ms", False, "host cycle", "25 · 7×"),
    ("ExecSync `true`, back to back", "ExecSync true, back to back", "ms", False, None, "3.5 · 10×"),
    ("ExecSync `true`, one per second", "ExecSync true, one per second", "ms", False, None, "11 · 4×"),
    ("StopContainer (kill)", "StopContainer (kill)", "ms", False, None, "5 · 4×"),
    ("RemoveContainer", "RemoveContainer", "ms", False, None, "1.5"),
    ("ListContainerStats, 50 pods", "ListContainerStats, 50 pods", "ms", False, None, "5 · 12×"),
    ("ListContainers, 50 pods", "ListContainers, 50 pods", "ms", False, "version", "0.3"),
    ("50 pods up, 8 at a time, CNI bridge", "pods per second up, 50 pods, 8 at a time", "pods/s", True, None,
     "70 · 5×"),
    ("50 pods up, 8 at a time, built-in network", "builtin many", "pods/s", True, None, ""),
    ("50 pods down", "pods per second down, 50 pods, 8 at a time", "pods/s", True, None, "100 · 3.5×"),
    ("daemon resident, just started", "start rss", "MiB", False, None, "12"),
    ("daemon resident, idle after the rows above", "idle rss", "MiB", False, None, "12"),
    ("all memory per pod beyond the workload (PSS)", "per pod", "KiB", False, None, "400"),
    ("exec, output", "exec, output", "MB/s", True, None, "1.5×"),
    ("exec, input", "exec, input", "MB/s", True, None, "1.5×"),
    ("attach, output", "attach, output", "MB/s", True, None, "1.5×"),
    ("port-forward, from the pod", "port-forward, from the pod", "MB/s", True, None, "1.5×"),
    ("port-forward, to the pod", "port-forward, to the pod", "MB/s", True, None, "1.5×"),
    ("daemon, per idle exec session", "idle session", "KiB", False, None, "64"),
    ("pull, one layer, data synced", "pull-1 MB/s synced", "MB/s", True, None, "75 · 2.5×"),
    ("pull, eight layers, data synced", "pull-8 MB/s synced", "MB/s", True, None, "120 · 2.5×"),
    ("CPU seconds per pull, one layer", "pull-1 cpu_s", "s", False, None, "5.0"),
    ("CPU seconds per pull, eight layers", "pull-8 cpu_s", "s", False, None, "4.5"),
    ("daemon resident at most, pull of one layer", "pull-1 peak MiB", "MiB", False, None, "64"),
    ("daemon resident at most, pull of eight layers", "pull-8 peak MiB", "MiB", False, None, "64"),
    ("pull of an image that is there", "pull-8 again", "ms", False, None, "20"),
]
ALSO = [(name, name, "ms", False, None, "") for name in (
    "RunPodSandbox, bridge", "StopPodSandbox, bridge", "RemovePodSandbox, bridge", "RunPodSandbox, host net",
    "StopPodSandbox, host net", "RemovePodSandbox, host net", "CreateContainer", "StartContainer",
    "ListPodSandbox, 50 pods", "ContainerStatus, 50 pods", "PodSandboxStatus, 50 pods",
    "Daemon CPU per cycle, bridge", "Daemon CPU per cycle, host net", "Version (client floor)")] + [
    ("pull, one layer, until the RPC answers", "pull-1 MB/s", "MB/s", True, None, ""),
    ("pull, eight layers, until the RPC answers", "pull-8 MB/s", "MB/s", True, None, "")]


def load(directory, name):
    try:
        with open(os.path.join(directory, name)) as f:
            return json.load(f) if name.endswith(".json") else f.read()
    except (OSError, ValueError):
        return None


def samples(run):
    """Every row that a run has, by name."""
    got, facts = dict(run["rows_ms"]), run["facts"]
    got.update((k, v) for k, v in facts.items() if k.startswith("pods per second"))
    if facts.get("memory at start, KiB", {}).get("rss"):
        got["start rss"] = [facts["memory at start, KiB"]["rss"] / 1024]
    memory = facts.get("memory, KiB")
    if memory:
        got["idle rss"] = [memory["daemon idle"]["rss"] / 1024]
        got["per pod"] = [memory["helpers + daemon growth, PSS per pod"]]
    got.update(facts.get("streams", {}))
    got["idle session"] = facts.get("idle session, KiB")
    for image, pull in facts.get("pull", {}).items():
        name = image.rsplit("/", 1)[1].split(":")[0]
        for key in ("MB/s", "MB/s synced", "cpu_s", "peak MiB"):
            got["%s %s" % (name, key)] = [r[key] for r in pull["runs"]]
        got[name + " again"] = pull["again ms"]
    return got


def loaded(directory, name):
    """A runtime's run, with what was measured on a disk of its own; `None` without either."""
    parts = [run for run in (load(directory, name + ".json"), load(directory, name + "-pull.json")) if run]
    for part in parts[1:]:
        parts[0]["facts"]["pull"] = part["facts"].get("pull", {})
        parts[0]["facts"]["machine"].update(part["facts"]["machine"])
        parts[0]["facts"].setdefault("failed", []).extend(part["facts"].get("failed", []))
    return parts[0] if parts else None


def with_builtin(directory, got):
    """Adds what our own network did to our rows."""
    run = load(directory, "builtin.json")
    if run:
        ours = samples(run)
        rows = got.setdefault("podhold", {})
        rows["builtin up"] = ours.get("Pod up (run+create+start), bridge")
        rows["builtin many"] = ours.get("pods per second up, 50 pods, 8 at a time")


def standalone(directory):
    """The commands that run one pod from a manifest, from start to exit."""
    rows = load(directory, "standalone.json")
    if not rows:
        return []
    out = ["", "## One pod, one command", "",
           "From the start of the command to its exit, the image being there (integration/bench/standalone.py).", "",
           "| command | ms | to podhold |", "|---|---|---|"]
    ours = statistics.median(next(iter(rows.values())))
    for command, times in rows.items():
        out.append("| `%s` | %s | %.1f× |" % (command, spread(times), statistics.median(times) / ours))
    return out


def number(x):
    return "%.0f" % x if x >= 100 else "%.1f" % x if x >= 10 else "%.2f" % x


def spread(xs):
    if not xs:
        return "-"
    if len(xs) == 1:
        return number(xs[0])
    return "%s (%s–%s)" % (number(statistics.median(xs)), number(min(xs)), number(max(xs)))


def floors(directory, runs):
    """What the kernel and the network plugins need by themselves, in milliseconds."""
    got = {}
    for name, tag in (("floor-bridge.txt", ""), ("floor-host.txt", "host ")):
        text = load(directory, name) or ""
        for row, key in (("TOTAL up to exec done", "up"), ("TOTAL with teardown", "cycle")):
            found = re.search(re.escape(row) + r"\s*\|\s*([\d.]+)", text)
            if found:
                got[tag + key] = number(float(found[1]) / 1e3)
    plugins = load(directory, "plugins.json")
    if plugins and "up" in got:
        add, delete = statistics.median(plugins["ADD"]), statistics.median(plugins["DEL"])
        got["up"] += " + " + number(add)
        got["cycle"] += " + " + number(add + delete)
    version = [x for run in runs.values() for x in run["rows_ms"].get("Version (client floor)", [])]
    if version:
        got["version"] = number(statistics.median(version))
    return got


def table(rows, got, floor):
    out = ["| row | podhold | containerd | ratio | floor | goal |", "|---|---|---|---|---|---|"]
    for title, key, unit, more, floor_key, goal in rows:
        ours, theirs = (got.get(name, {}).get(key) for name in RUNTIMES)
        if not ours and not theirs:
            continue
        ratio = "-"
        if ours and theirs and statistics.median(ours) and statistics.median(theirs):
            a, b = statistics.median(ours), statistics.median(theirs)
            ratio = "%.1f×" % (a / b if more else b / a)
        out.append("| %s, %s | %s | %s | %s | %s | %s |" % (
            title, unit, spread(ours), spread(theirs), ratio, floor.get(floor_key, ""), goal))
    return out


def machine(directory, runs):
    """What all numbers depend on."""
    host = next(iter(runs.values()))["host"]
    with open("/proc/cpuinfo") as f:
        model = re.search(r"model name\s*: (.*)", f.read())
    with open("/proc/meminfo") as f:
        total = int(f.read().split()[1]) / 1024 / 1024
    with open("/proc/mounts") as f:
        v1 = any(line.split()[2] == "cgroup" for line in f)
    out = ["- %s, %d cores, %s, %.0f GiB; Linux %s; control groups %s" % (
        host["time"][:16].replace("T", " ") + " UTC", host["cpus"], model[1] if model else "?", total, host["kernel"],
        "v1 (hybrid)" if v1 else "v2")]
    load_before = (load(directory, "load") or "? ? ?").split()
    out.append("- load average before the run: %s" % " ".join(load_before[:3]))
    for name, run in runs.items():
        busy = ["%s %.0f %%" % (part, m["busy % just before"]) for part, m in run["facts"]["machine"].items()]
        out.append("- %s: %s; machine busy just before each part: %s" % (name, run["facts"]["runtime"], ", ".join(busy)))
    return out


def main():
    directory = sys.argv[1]
    runs = {name: run for name in RUNTIMES for run in [loaded(directory, name)] if run}
    floor = floors(directory, runs)
    if not runs:
        few = standalone(directory) + ["%s: %s" % pair for pair in floor.items()]
        if not few:
            sys.exit("report.py: nothing was measured")
        print("\n".join(few))
        return
    got = {name: samples(run) for name, run in runs.items()}
    with_builtin(directory, got)
    out = ["# Speed and memory", "",
           "Made by `make bench`. Both runtimes ran on one machine in one run, one after the other, with the "
           "same images, network and client. Medians, with minimum and maximum; a ratio above 1 means that "
           "podhold is better. Pods are made as a kubelet makes them (integration/bench/client.py).", ""]
    out += machine(directory, runs) + [""] + table(ROWS, got, floor)
    out += ["", "*Floor*: the system calls of a pod by themselves (integration/bench/floor.c), and after the plus the "
            "network plugins by themselves, without a runtime. For lists: an empty RPC. *Data synced*: until "
            "the RPC has answered and `sync` has returned. *CPU seconds*: of the daemon and the children it "
            "has waited for. *Goal*: absolute value on the machine it was set on, and ratio to the better peer "
            "there, which was not this version of containerd.", "",
            "## More rows", ""] + table(ALSO, got, floor)
    for name, run in runs.items():
        helpers = run["facts"].get("memory, KiB", {}).get("helper processes", {})
        for process, m in sorted(helpers.items()):
            out.append("" if process == min(helpers) and name == list(runs)[0] else None)
            out.append("- %s, %d processes `%s`: PSS %d KiB each, private %d KiB each" % (
                name, m["count"], process, m["pss"] / m["count"], m["private"] / m["count"]))
        out += ["- **%s failed**: %s" % (name, text) for text in run["facts"].get("failed", [])]
    out += standalone(directory) + ["", MARK]
    print("\n".join(line for line in out if line is not None))
    if len(sys.argv) > 2 and os.path.exists(sys.argv[2]):
        with open(sys.argv[2]) as f:
            _, mark, kept = f.read().partition(MARK + "\n")
        if mark:
            print(kept, end="")


if __name__ == "__main__":
    main()
