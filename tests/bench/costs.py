"""Costs apart from requests a second: TLS handshakes, instructions, system calls, many clusters."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import peers as P
from harness import LOAD_CPU, PROXY_CPU, SCENARIOS, backends, done, load, save, start, takes_part


def cmd_tls(a):
    """Full TLS 1.3 handshakes against port 16004 (server certificate only) and 16003 (mutual)."""
    back = backends()
    d = P.certs()
    results = []
    for rep in range(a.reps):
        for name in a.peers.split(","):
            if name == "direct":
                continue
            if not takes_part(P.ALL[name], "mtls"):
                continue
            live = start([name])
            if not live:
                continue
            peer = live[0]
            try:
                proxy = peer.tls_server()
                for port, label, more in ((16004, "tls", []),
                                          (16003, "mtls", ["-cert", d / "leaf.pem", "-key", d / "leaf.key"])):
                    if name == "outrigger" and label == "tls":
                        continue  # it lets nobody in without a certificate
                    n = 4
                    c0, t0 = proxy.cpu_ns(), time.monotonic()
                    qs = [subprocess.Popen(["taskset", "-c", str(LOAD_CPU), "openssl", "s_time", "-connect",
                                            f"127.0.0.1:{port}", "-new", "-time", str(int(a.secs) or 3), "-tls1_3"]
                                           + [str(x) for x in more],
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(n)]
                    total = 0
                    for q in qs:
                        out = q.communicate()[0]
                        for line in out.splitlines():
                            if "real seconds" in line:
                                total += int(line.split()[0])
                    span, cpu = time.monotonic() - t0, (proxy.cpu_ns() - c0) / 1e9
                    r = dict(peer=name, topo=label, scenario="handshake", rep=rep, rps=total / span,
                             cpu_us=cpu / total * 1e6 if total else None, cpu_share=cpu / span)
                    results.append(r)
                    print(json.dumps(r), flush=True)
            finally:
                peer.stop()
    save(a, results)
    done(back)


EXCHANGE = b"GET / HTTP/1.1\r\nHost: backend\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"


def exchange(port, n):
    """`n` exchanges one after the other over one connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        for _ in range(n):
            s.sendall(EXCHANGE)
            got = b""
            while b"\r\n\r\n" not in got:
                got += s.recv(65536) or sys.exit("the connection ended in a head")
            head, body = got.split(b"\r\n\r\n", 1)
            if not head.startswith(b"HTTP/1.1 200"):
                sys.exit(head.decode())
            left = int(re.search(rb"(?i)content-length: *(\d+)", head)[1]) - len(body)
            while left > 0:
                left -= len(s.recv(65536) or sys.exit("the connection ended in a body"))


def counted(name, topo, n):
    """Instructions of each of the peer's processes in `n` exchanges, start and end included."""
    peer = P.ALL[name]()
    P.wait_closed()
    file = P.WORK / "callgrind-{}.out"
    peer.start("0,1", under=("valgrind", "--tool=callgrind", f"--callgrind-out-file={file}"))
    exchange(peer.addr(topo, "http"), n)
    procs = peer.proxies(topo)
    for p in procs:
        p.p.terminate()
        p.p.wait(120)
    peer.stop()
    return [int(re.search(r"Collected : (\d+)", open(p.log.name).read())[1]) for p in procs]


def cmd_instructions(a):
    """User instructions of one HTTP/1.1 exchange (callgrind): what 2,500 exchanges take more than 500."""
    back = backends()
    results = []
    for topo in a.topos.split(","):
        for name in a.peers.split(","):
            few, many = counted(name, topo, 500), counted(name, topo, 2500)
            each = [round((m - f) / 2000) for f, m in zip(few, many)]
            row = dict(peer=name, topo=topo, scenario="instructions", each=each, all=sum(each))
            results.append(row)
            print(json.dumps(row), flush=True)
        first = [r for r in results if r["topo"] == topo][0]
        for r in results:
            if r["topo"] == topo and r is not first:
                print(f"{topo}: {r['peer']} takes {(r['all'] / first['all'] - 1) * 100:+.1f} % against {first['peer']}")
    save(a, results)
    done(back)


CALLS = ["read", "readv", "recvfrom", "recvmsg", "write", "writev", "sendto", "sendmsg", "epoll_wait",
         "epoll_pwait", "epoll_ctl", "io_uring_enter", "futex", "accept4", "accept", "connect", "socket",
         "setsockopt", "getsockopt", "close", "shutdown", "timerfd_settime", "clock_gettime", "getrandom"]


def cmd_syscalls(a):
    """System calls a request (kernel tracepoints through perf; needs root)."""
    back = backends()
    results = []
    events = ",".join(["raw_syscalls:sys_enter", "context-switches"] + [f"syscalls:sys_enter_{c}" for c in CALLS])
    for name in a.peers.split(","):
        if name == "direct":
            continue
        live = start([name])
        if not live:
            continue
        peer = live[0]
        try:
            for topo in a.topos.split(","):
                for s in (a.scenarios or "h1-small,h1-small-1k,grpc-small,grpc-small-1k,tcp-echo,h1-newconn").split(","):
                    if not peer.supports(topo, SCENARIOS[s][0]):
                        continue
                    pids = ",".join(str(p.pid) for p in peer.proxies(topo))
                    q = subprocess.Popen(load(peer, topo, s, 2.4, 0.3), stdout=subprocess.PIPE, text=True)
                    time.sleep(0.6)
                    t0 = time.monotonic()
                    r = subprocess.run(["perf", "stat", "-x", ";", "-e", events, "-p", pids, "--", "sleep", "1.5"],
                                       capture_output=True, text=True)
                    span = time.monotonic() - t0
                    j = json.loads(q.communicate()[0].strip().splitlines()[-1])
                    n = j["rps"] * min(span, 1.5)
                    row = {"peer": name, "topo": topo, "scenario": s, "rps": j["rps"]}
                    for line in r.stderr.splitlines():
                        f = line.split(";")
                        if len(f) > 2 and f[0].isdigit() and int(f[0]):
                            key = f[2].replace("syscalls:sys_enter_", "").replace("raw_syscalls:sys_enter", "all")
                            row[key] = round(int(f[0]) / n, 3)
                    results.append(row)
                    print(json.dumps(row), flush=True)
        finally:
            peer.stop()
    save(a, results)
    done(back)


def cmd_scale(a):
    """Envoy with many static clusters: startup time, memory, and the cost of idling."""
    exe = P.envoy_bin()
    back = backends()
    results = []
    for n in [int(x) for x in a.sizes.split(",")]:
        cfg = P.envoy_config("out", False, 9901, P.certs())
        proto = {k: v for k, v in cfg["static_resources"]["clusters"][0].items()}
        vh = []
        for i in range(n):
            c = json.loads(json.dumps(proto))
            c["name"] = f"svc-{i}.default.svc.cluster.local"
            c["load_assignment"]["cluster_name"] = c["name"]
            c["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
                {"endpoint": {"address": {"socket_address": {"address": f"127.1.{i // 250 % 250}.{1 + i % 250}", "port_value": 9000 + j}}}}
                for j in range(3)]
            cfg["static_resources"]["clusters"].append(c)
            vh.append({"name": c["name"], "domains": [c["name"]],
                       "routes": [{"match": {"prefix": "/"}, "route": {"cluster": c["name"]}}]})
        for ls in cfg["static_resources"]["listeners"]:
            t = ls["filter_chains"][0]["filters"][0]["typed_config"]
            if ls["name"] == "h1_hop":
                t["route_config"]["virtual_hosts"] += vh
        f = P.WORK / f"envoy-scale-{n}.json"
        f.write_text(json.dumps(cfg))
        for rep in range(a.reps):
            t0 = time.time()
            p = P.Proc(f"envoy-scale-{n}", [exe, "-c", f, "--concurrency", "1", "--base-id", "20", "-l", "error"],
                       cpu=PROXY_CPU)
            t1 = P.wait_port(15001, 120, p)
            cpu_start = p.cpu_ns() / 1e9
            time.sleep(2)
            m = p.mem()
            c0 = p.cpu_ns()
            time.sleep(12)  # two stats flushes
            idle = (p.cpu_ns() - c0) / 12e6
            r = dict(clusters=n, rep=rep, config_mb=os.path.getsize(f) / 1e6, ready_s=round(t1 - t0, 3),
                     start_cpu_s=round(cpu_start, 3), idle_cpu_ms_per_s=round(idle, 2), **m)
            results.append(r)
            print(json.dumps(r), flush=True)
            p.stop()
    save(a, results)
    done(back)
