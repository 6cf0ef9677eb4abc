#!/usr/bin/env python3
"""Write what faults.py has measured as tables in Markdown, for BENCHMARKS.md.

  faults_report.py .cache/bench/results/20261121T051944Z
"""
import sys

from report import RUNTIMES, load, machine, number, spread

READS = ("ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus", "Status", "ListContainerStats",
         "Version", "echo")


def quantile(xs, part):
    """The smallest sample that is not exceeded by this part of them."""
    return sorted(xs)[min(len(xs) - 1, int(len(xs) * part))]


def tail(xs):
    if not xs:
        return "-"
    return " / ".join(number(x) for x in (quantile(xs, 0.5), quantile(xs, 0.99), max(xs)))


def busy(facts):
    """p50, p99 and maximum of what reads took."""
    if not any("busy" in f for f in facts.values()):
        return []
    out = ["### Lists and statuses while the runtime is busy", "",
           "p50 / p99 / maximum in ms; goal: p99 below 5.", "",
           "| read | podhold, busy | containerd, busy | podhold, at rest | containerd, at rest |", "|---|---|---|---|---|"]
    for name in READS:
        row = [tail(facts.get(r, {}).get(kind, {}).get("took", {}).get(name, []))
               for kind in ("busy", "quiet") for r in RUNTIMES]
        out.append("| %s | %s |" % (name, " | ".join(row)))
    out.append("")
    for name, f in facts.items():
        b = f.get("busy")
        if b:
            hung = f.get("hung create", [])
            out.append("- %s: %d rounds in %.0f s, processors busy %.0f %%, %.1f pods/s up and down again; %d reads "
                       "failed. CreateContainer on the hung mount answered after %s s%s" % (
                           name, len(b["took"]["echo"]), b["seconds"], b["processors"], b["pods"] / b["seconds"],
                           sum(map(len, b["failed"].values())), ", ".join("%.0f" % h["seconds"] for h in hung),
                           ": " + hung[0]["error"] if hung else ""))
    return out + [""]


def recovery(facts):
    """Seconds until all pods are known again, against their number."""
    if not any("recovery" in f for f in facts.values()):
        return []
    rows = {name: {r["pods"]: r for r in f.get("recovery", [])} for name, f in facts.items()}
    out = ["### Recovery after kill -9", "",
           "Seconds from exec of the daemon until ListContainers says Running of all; median (minimum–maximum).", "",
           "| pods | podhold | containerd |", "|---|---|---|"]
    for count in sorted({n for r in rows.values() for n in r}):
        cells = []
        for name in RUNTIMES:
            runs = [run["all"] for run in rows.get(name, {}).get(count, {}).get("runs", [])]
            late = sum(run is None for run in runs)
            cells.append(spread([run for run in runs if run is not None]) + (", %d× not in 60 s" % late if late else ""))
        out.append("| %d | %s |" % (count, " | ".join(cells)))
    out.append("")
    for name, f in facts.items():
        bad = f.get("one bad pod")
        if bad:
            show = lambda x: "not in 60 s" if x is None else "%.2f s" % x
            out.append("- %s, %d pods, one shim stopped (SIGSTOP): first list after %s, all others Running after %s; "
                       "after SIGCONT it is Running too after %s" % (
                           name, bad["pods"], show(bad["others"]["answers"]), show(bad["others"]["all"]),
                           show(bad["healed after"])))
    return out + [""]


def exits(got):
    """One line of the table for each kind of end."""
    kinds = {}
    for kind, code, reason, late in got:
        kinds.setdefault(kind, []).append((code, reason, late))
    cells = {}
    for kind, seen in kinds.items():
        told = sorted({"%s %s" % ("not exited" if code is None else code, reason or "-") for code, reason, _ in seen})
        lates = [late for _, _, late in seen]
        cells[kind] = "%s; time off by %.2f to %.2f s" % (", ".join(told), min(lates), max(lates))
    return cells


def crash(facts):
    """What each runtime lost."""
    got = {name: f["crash"] for name, f in facts.items() if "crash" in f}
    if not got:
        return []
    rows = []

    def row(title, cell):
        cells = []
        for name in RUNTIMES:
            try:
                cells.append(cell(got[name]))
            except (KeyError, TypeError):
                cells.append("-")
        rows.append("| %s | %s |" % (title, " | ".join(cells)))

    kinds = {kind: None for f in got.values() for kind, *_ in f.get("exits", [])}
    for kind in kinds:
        row("end while the daemon is dead (%s): code and reason afterwards" % kind, lambda f, k=kind: exits(f["exits"])[k])
    log = lambda key, form="%d": (lambda f: form % f["logs"][key])
    row("lines written at 10,000 a second", log("lines"))
    row("… **missing**", log("missing"))
    row("… **doubled**", log("doubled"))
    row("… **torn**", log("torn"))
    row("… out of order", log("misplaced"))
    row("container kept from writing: times over 10 ms, longest, sum", lambda f: "%d, %.0f ms, %.1f s" % (
        f["logs"]["gaps over 10 ms"], f["logs"]["longest gap, ms"], f["logs"]["all gaps, ms"] / 1e3))
    row("daemon away after a kill, s", lambda f: spread(f["logs"]["away"]))
    row("ReopenContainerLog refused, of 20", log("refused"))
    row("how the writer ended", log("ended", "%s"))
    row("exec'd commands left behind, of %d" % 5, lambda f: "%d" % f["execs"]["left"])
    row("20 RunPodSandbox cut off: pods listed, removed, still listed", lambda f: "%d, %d, %d" % (
        f["half_pods"]["listed"], f["half_pods"]["listed"] - f["half_pods"]["still listed"],
        f["half_pods"]["still listed"]))
    row("… left on the host after that", lambda f: ", ".join(
        "%d %s" % (n, kind) for kind, n in f["half_pods"]["left"].items() if n) or "nothing")
    return ["### What is lost when the daemon is killed", "", "| scenario | podhold | containerd |", "|---|---|---|"] + rows + [""]


def main():
    directory = sys.argv[1]
    runs = {name: run for name in RUNTIMES for run in [load(directory, "faults-%s.json" % name)] if run}
    if not runs:
        return
    facts = {name: run["facts"] for name, run in runs.items()}
    out = machine(directory, runs) + [""] + busy(facts) + recovery(facts) + crash(facts)
    out += ["- **%s failed**: %s" % (name, text) for name, f in facts.items() for text in f.get("failed", [])[:5]]
    print("\n".join(out))


if __name__ == "__main__":
    main()
