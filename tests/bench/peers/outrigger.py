"""The project's own program: `outrigger-sidecar --config FILE` as it ships, in static mode.

One bootstrap file a role. Everything that is not a name, a port or an address stays at its default,
except `workers: 1`: every peer gets one thread for data (HAProxy's `nbthread 1`, Envoy's `--concurrency 1`).
Each service has three endpoints (one address under three instance names), so balancing is paid for, and 20 routes,
of which the last takes the request; the other peers have one endpoint and one route.

In the mesh, HTTP/1.1 travels as HTTP/2 between the two sidecars; the other peers keep HTTP/1.1.

`outrigger-policies` has retries, breaker, ejection, bounds, rate limits, an admission limit and access rules on, all
looser than the load; `outrigger-bare` has what can be turned off turned off. Between the two lies what policy costs.
"""

import json
import os
from pathlib import Path

from .base import ROOT, TCP, WORK, Peer, Proc, certs, sh, wait_port

INSTANCES = ("a", "b", "c")
SHOWN = set()
WIRE = ["wire.extended-connect", "wire.mtls", "wire.tcp-tunnel"]


def program():
    """`OUTRIGGER_SIDECAR`, or the workspace's release build."""
    if os.environ.get("OUTRIGGER_SIDECAR"):
        return os.environ["OUTRIGGER_SIDECAR"]
    if not os.environ.get("BENCH_IN_NS"):  # inside the namespace no registry is reached
        sh("cargo", "build", "--release", "-p", "outrigger-sidecar", cwd=ROOT)
    return str(Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release" / "outrigger-sidecar")


def routes():
    """Of each kind of path some, and one for all that is left."""
    kinds = [("exact", "/exact/{}"), ("prefix", "/prefix/{}"), ("template", "/template/{{id}}/{}")]
    named = [(f"r{i}", kinds[i % 3][0], kinds[i % 3][1].format(i)) for i in range(19)]
    return [{"name": name, "matches": [{"path": {kind: path}}], "action": {"forward": {}}} for name, kind, path in named] + [
        {"name": "rest", "matches": [{"path": {"prefix": "/"}}], "action": {"forward": {}}}]


TRIP = {"consecutive": 5, "rate_percent": 50, "slow_ms": 1000, "slow_percent": 80}
RULES = [{"name": f"allow[{i}]", "from": [{"who": {"service": f"default/other-{i}"}}], "paths": [f"/{i}/*"]} for i in range(9)] + [
    {"name": "allow[9]", "from": [{"who": {"trust_domain": "bench"}}], "methods": ["GET", "POST"], "paths": ["/*", "/"]}]

# What the caller's sidecar does, and the app's, by the name of the peer.
OUTBOUND = {
    "outrigger": {},
    "outrigger-bare": {"outlier": {"off": True}},
    "outrigger-policies": {
        "policy": {"timeout_ms": 10000, "per_try_timeout_ms": 5000, "retry": {"attempts": 3}},
        "breaker": {"trip": TRIP},
        "outlier": {"trip": TRIP},
        # No bound on connections: where it holds (HTTP/1 without a sidecar at the other end) none is kept for the next request.
        "concurrency": {"requests": 10000, "endpoint_requests": 5000},
    },
}
INBOUND = {
    "outrigger": {},
    "outrigger-bare": {},
    "outrigger-policies": {
        "admission": {"limit": {"fixed": 10000}},
        "rate_limits": [{"name": "all", "requests": 10_000_000, "period_ms": 1000, "by": {"all": True}}],
        "access": {"default": "deny", "rules": RULES},
    },
}


def service(peer, name, ports):
    """A service that the app calls: `ports` are (name, protocol)."""
    named = [{"name": port, "protocol": protocol} for port, protocol in ports]
    http = {} if all(protocol == "tcp" for _, protocol in ports) else {"routes": routes()}
    return {"name": name, "ports": named, **http, **OUTBOUND[peer]}


def endpoints(name, ports, wire=None):
    """Three instances at one address: `ports` are (name, number)."""
    more = {"meshed": True, "capabilities": wire} if wire else {}
    named = [{"name": port, "port": number} for port, number in ports]
    return [{"name": f"{name}/{i}", "address": "127.0.0.1", "ports": named, **more} for i in INSTANCES]


def bootstrap(peer, role):
    """What the program is started with, without TLS."""
    head = {"namespace": "bench", "service": role, "instance": f"{role}-1", "workers": 1}
    if role == "in":
        ports = (("http", 16002), ("grpc", 16202))
        inbound = [{"name": p, "protocol": p, "listen": f"127.0.0.1:{n}", "app": "127.0.0.1:9000"} for p, n in ports]
        # Rules need an identity: there is none here.
        proxy = {k: v for k, v in INBOUND[peer].items() if k != "access"}
        return {**head, "inbound": inbound, "resources": {"proxy": {"name": "bench/in", **proxy}}}
    called = [("http", "http", 15001, 9000, None), ("http-mesh", "http", 15002, 16002, WIRE[:1]),
              ("grpc", "grpc", 15201, 9000, None), ("grpc-mesh", "grpc", 15202, 16202, WIRE[:1])]
    called += [(kind, "tcp", 15100 + i, 9000 + i, None) for kind, i in TCP.items()]
    return {**head, "outbound": [{"service": name, "listen": f"127.0.0.1:{listen}"} for name, _, listen, _, _ in called],
            "resources": {
                "services": [service(peer, f"bench/{name}", [("main", protocol)]) for name, protocol, *_ in called],
                "endpoints": [e for name, _, _, port, wire in called for e in endpoints(f"bench/{name}", [("main", port)], wire)]}}


# Port name, protocol, listener of the caller's sidecar, of the app's sidecar, of the app.
SECURE = [("http", "http", 15003, 16003, 9000), ("grpc", "grpc", 15203, 16203, 9000)] + [
    (kind, "tcp", 15110 + i, 16110 + i, 9000 + i) for kind, i in TCP.items()]


def secure(peer, role):
    """As `bootstrap`, with mutual TLS. One leaf for both ends, as with the other peers."""
    d = certs()
    head = {"namespace": "default", "service": "backend", "instance": f"{role}-mtls", "workers": 1,
            "identity": {"post_quantum": False,
                         "files": {"chain": f"{d}/leaf.pem", "key": f"{d}/leaf.key", "roots": f"{d}/ca.pem"}}}
    if role == "in":
        inbound = [{"name": name, "protocol": protocol, "listen": f"127.0.0.1:{listen}", "app": f"127.0.0.1:{app}"}
                   for name, protocol, _, listen, app in SECURE]
        return {**head, "inbound": inbound,
                "resources": {"proxy": {"name": "default/backend", "mode": "strict", **INBOUND[peer]}}}
    backend = service(peer, "default/backend", [(name, protocol) for name, protocol, *_ in SECURE])
    return {**head,
            "outbound": [{"service": "backend", "port": name, "listen": f"127.0.0.1:{listen}"} for name, _, listen, _, _ in SECURE],
            "resources": {"services": [{**backend, "mode": "strict"}],
                          "endpoints": endpoints("default/backend", [(name, port) for name, _, _, port, _ in SECURE], WIRE)}}


class Outrigger(Peer):
    """Two sidecars: the caller's and the app's; and two more with mutual TLS."""
    name = "outrigger"

    def proxies(self, topo):
        pair = self.procs[2:] if topo == "mtls" else self.procs[:2]
        return pair[:1] if topo == "hop" else pair

    def tls_server(self):
        return self.procs[3]

    def start(self, cpu, under=()):
        """`under`: a program that each sidecar is run by, with its options; `{}` stands for the role."""
        exe = program()
        for role, config, port in (("out", bootstrap(self.name, "out"), 15001), ("in", bootstrap(self.name, "in"), 16002),
                                   ("out-mtls", secure(self.name, "out"), 15003), ("in-mtls", secure(self.name, "in"), 16003)):
            file = WORK / f"{self.name}-{role}.yaml"
            text = json.dumps(config, indent=1)
            file.write_text(text)
            if (self.name, role) not in SHOWN:
                SHOWN.add((self.name, role))
                print(f"--- {exe} --config {file}: {len(text)} bytes", flush=True)
            p = Proc(f"{self.name}-{role}", [*(word.format(role) for word in under), exe, "--config", file], cpu=cpu)
            self.procs.append(p)
            wait_port(port, 60 if under else 20, p)


class Policies(Outrigger):
    """Everything on."""
    name = "outrigger-policies"


class Bare(Outrigger):
    """Everything off."""
    name = "outrigger-bare"
