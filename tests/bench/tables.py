"""Results as Markdown: medians over repetitions, ratios against peers of the same run."""

import statistics

import peers as P
from harness import SCENARIOS

TOPOLOGIES = ("hop", "mesh", "mtls", "tls")
HEAD = ("topology", "peer", "n", "rps", "of direct", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "+p50", "+p99",
        "proxy CPU µs/req", "× haproxy", "× envoy", "CPU µs/MB", "sys", "core used", "spread", "errors")


def med(rows, key):
    v = [r[key] for r in rows if r.get(key) is not None]
    return statistics.median(v) if v else None


def spread(rows, key):
    v = [r[key] for r in rows if r.get(key) is not None]
    return (max(v) - min(v)) / statistics.median(v) if len(v) > 1 and statistics.median(v) else 0


def text(x, digits=1):
    return "" if x is None else f"{x:.{digits}f}"


def over(a, b):
    return a / b if a and b else None


def line(cells):
    print("|", " | ".join(cells), "|")


def print_runs(rows):
    """One table a scenario. Failed measurements are named, never averaged."""
    for r in rows:
        if "failed" in r:
            print(f"failed: {r['peer']} {r['topo']} {r['scenario']}: {r['failed']}")
    rows = [r for r in rows if "failed" not in r]
    for scenario in list(SCENARIOS) + ["handshake"]:
        sub = [r for r in rows if r["scenario"] == scenario]
        if not sub:
            continue
        print(f"\n### {scenario}\n")
        line(HEAD)
        line(["---"] * len(HEAD))
        for topo in TOPOLOGIES:
            for name in P.ALL:
                if any(r["peer"] == name and r["topo"] == topo for r in sub):
                    line(row(sub, scenario, topo, name))


def row(sub, scenario, topo, name):
    """The cells of one peer in one topology."""
    def of(peer):
        return [r for r in sub if r["peer"] == peer and r["topo"] == topo]
    g, base = of(name), [r for r in sub if r["peer"] == "direct"]
    stream = SCENARIOS.get(scenario, ("", ""))[0] in ("source", "sink")
    rate, cost = ("mbps", "cpu_us_per_mb") if stream else ("rps", "cpu_us")

    def added(key):
        return med(g, key) - med(base, key) if base and med(g, key) is not None else None
    return [topo, name, str(len(g)), text(med(g, "rps"), 0), text(over(med(g, rate), med(base, rate)), 2),
            text(med(g, "mbps"), 0), text(med(g, "p50_us"), 0), text(med(g, "p99_us"), 0), text(med(g, "p999_us"), 0),
            text(added("p50_us"), 0), text(added("p99_us"), 0), text(med(g, "cpu_us")),
            text(over(med(g, cost), med(of("haproxy"), cost)), 2), text(over(med(g, cost), med(of("envoy"), cost)), 2),
            text(med(g, "cpu_us_per_mb"), 0), text(med(g, "sys_share"), 2), text(med(g, "cpu_share"), 2),
            text(spread(g, cost) if name != "direct" else spread(g, rate), 2),
            str(sum(r.get("errors", 0) + r.get("conn_errors", 0) for r in g))]


def print_memory(rows):
    """Resident memory of all processes of the topology, and what one idle connection adds."""
    if not rows:
        return
    print("\n### memory\n")
    head = ("topology", "peer", "idle MB", "1,000 connections MB", "KB each", "5,000 connections MB", "KB each",
            "after load MB", "idle CPU ms/s")
    line(head)
    line(["---"] * len(head))

    def rss(processes):
        return sum(p["VmRSS"] for p in processes) if isinstance(processes, list) else None
    for r in rows:
        idle, cells = rss(r["idle"]), []
        for n in (1000, 5000):
            held = rss(r[f"conns_{n}"])
            cells += [text(held and held / 1024), text(held and (held - idle) / n)]
        line([r["topo"], r["peer"], text(idle / 1024), *cells, text(rss(r["after_load"]) / 1024),
              text(sum(r["idle_cpu_ms_per_s"]), 2)])
