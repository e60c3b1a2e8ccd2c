"""What every command shares: scenarios, the network namespace, one measurement."""

import json
import os
import subprocess
import sys
import time

import peers as P

NS = "outrigger-bench"
LOAD_CPU, PROXY_CPU = 0, 1

# name: (kind, arguments of bench-load)
SCENARIOS = {
    "h1-small": ("http", "http --conns 32"),
    "h1-small-1k": ("http", "http --conns 32 --rate 1000 --poisson"),
    "h1-small-5k": ("http", "http --conns 32 --rate 5000 --poisson"),
    "h1-10k": ("http", "http --conns 32 --path /10k"),
    "h1-1m-down": ("http", "http --conns 4 --path /1m"),
    "h1-1m-up": ("http", "http --conns 4 --path /up --size 1048576"),
    "grpc-small": ("grpc", "grpc --conns 4 --streams 16"),
    "grpc-small-1k": ("grpc", "grpc --conns 4 --streams 64 --rate 1000 --poisson"),
    "grpc-small-5k": ("grpc", "grpc --conns 4 --streams 64 --rate 5000 --poisson"),
    "grpc-1m-down": ("grpc", "grpc --conns 2 --streams 2 --reply 1048576"),
    "grpc-1m-up": ("grpc", "grpc --conns 2 --streams 2 --size 1048576"),
    "tcp-echo": ("echo", "echo --conns 32 --size 128"),
    "tcp-down": ("source", "source --conns 4"),
    "tcp-up": ("sink", "sink --conns 4"),
    "h1-newconn": ("http", "churn --conns 16"),
    "tcp-newconn": ("echo", "tcpchurn --conns 16 --size 128"),
}


def in_namespace():
    """Re-runs this command inside a network namespace that has only loopback."""
    if os.environ.get("BENCH_IN_NS"):
        return
    subprocess.run(["ip", "netns", "del", NS], stderr=subprocess.DEVNULL)
    P.sh("ip", "netns", "add", NS)
    try:
        P.sh("ip", "-n", NS, "link", "set", "lo", "up")
        P.sh("ip", "-n", NS, "addr", "add", "10.77.0.1/16", "dev", "lo")
        ns = ["ip", "netns", "exec", NS]
        P.sh(*ns, "sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 60999", "net.ipv4.tcp_tw_reuse=1",
             "net.core.somaxconn=8192")
        env = dict(os.environ, BENCH_IN_NS="1")
        me = os.path.abspath(sys.argv[0])
        rc = subprocess.run(ns + [sys.executable, me] + sys.argv[1:], env=env).returncode
    finally:
        subprocess.run(["ip", "netns", "del", NS], stderr=subprocess.DEVNULL)
    sys.exit(rc)


def backends():
    """The backend, by port."""
    p = P.Proc("backend", [P.tool("bench-backend"), 9000], cpu=LOAD_CPU)
    P.wait_port(9000, 5, p)
    return {9000: p}


def done(back):
    """Ends the backend."""
    for p in back.values():
        p.stop()


def load(peer, topo, scenario, secs, warm=0.5, extra=()):
    kind, args = SCENARIOS[scenario]
    mode, *rest = args.split()
    cmd = ["timeout", str(int(secs + warm + 20)), *P.RT, "taskset", "-c", str(LOAD_CPU)]
    cmd += [P.tool("bench-load"), mode, f"{peer.ip}:{peer.addr(topo, kind)}", *rest,
            "--secs", str(secs), "--warm", str(warm), *extra]
    return cmd


def measure(peer, topo, scenario, secs, back):
    procs = peer.proxies(topo)
    warm = 0.4
    p = subprocess.Popen(load(peer, topo, scenario, secs, warm), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # CPU is read over a window inside the run, so warm-up and drain stay out.
    time.sleep(warm + 0.1)
    t0, c0, k0 = time.monotonic(), [x.cpu_ns() for x in procs], [x.ticks() for x in procs]
    b0 = sum(x.cpu_ns() for x in back.values())
    time.sleep(secs - 0.2)
    t1, c1, k1 = time.monotonic(), [x.cpu_ns() for x in procs], [x.ticks() for x in procs]
    b1 = sum(x.cpu_ns() for x in back.values())
    out, err = p.communicate()
    if p.returncode != 0:
        return {"failed": err.decode()[-300:] or f"rc {p.returncode}"}
    r = json.loads(out.decode().strip().splitlines()[-1])
    span = t1 - t0
    cpu = (sum(c1) - sum(c0)) / 1e9
    r["cpu_share"] = cpu / span
    ut = sum(b[0] - a[0] for a, b in zip(k0, k1))
    st = sum(b[1] - a[1] for a, b in zip(k0, k1))
    r["sys_share"] = st / max(1, ut + st)
    rps = r["rps"] or 0
    mb = r["mbps"] or 0
    if SCENARIOS[scenario][0] in ("source", "sink"):
        r["cpu_us_per_mb"] = cpu / span / mb * 1e6 if mb else None
    elif rps:
        r["cpu_us"] = cpu / span / rps * 1e6
    if scenario.endswith("1m-up") or scenario.endswith("1m-down"):
        r["mbps"] = rps * 1.048576
        r["cpu_us_per_mb"] = r.get("cpu_us", 0) / 1.048576
    r["back_cpu_share"] = (b1 - b0) / 1e9 / span
    if err:
        r["stderr"] = err.decode()[-200:]
    return r


def start(names, cpu=PROXY_CPU):
    """Starts peers; one that does not start is reported and left out."""
    live = []
    for n in names:
        p = P.ALL[n]()
        P.wait_closed()
        try:
            p.start(cpu if n != "envoy-c2" else "0,1")
            live.append(p)
        except Exception as e:  # noqa: BLE001
            print(f"{n}: did not start: {e}", file=sys.stderr)
            p.stop()
    return live


def takes_part(peer, topo, told=set()):  # noqa: B006
    """False, told once, for a topology that the peer says it cannot do."""
    why = peer.left_out.get(topo)
    if why and (peer.name, topo) not in told:
        told.add((peer.name, topo))
        print(f"{peer.name}: left out of {topo}: {why}", file=sys.stderr, flush=True)
    return topo in peer.topologies


def save(a, results):
    """Writes results to --out."""
    if a.out:
        with open(a.out, "w") as f:
            json.dump(results, f)
