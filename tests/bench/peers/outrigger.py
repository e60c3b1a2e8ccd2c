"""The project's own program: `outrigger-sidecar --config FILE` as it ships, in static mode.

One bootstrap file a role. Everything that is not a name, a port or an address stays at its default,
except `workers: 1`: every peer gets one thread for data (HAProxy's `nbthread 1`, Envoy's `--concurrency 1`).
Each service has three endpoints (one address under three instance names), so balancing is paid for; the other
peers have one. There are no TLS and no routes in the program yet: the mTLS ports are left out, and a request
is not matched against a route table.

In the mesh, HTTP/1.1 travels as HTTP/2 between the two sidecars; the other peers keep HTTP/1.1.
"""

import os
from pathlib import Path

from .base import ROOT, TCP, WORK, Peer, Proc, certs, sh, wait_port

INSTANCES = ("a", "b", "c")
SHOWN = set()


def program():
    """`OUTRIGGER_SIDECAR`, or the workspace's release build."""
    if os.environ.get("OUTRIGGER_SIDECAR"):
        return os.environ["OUTRIGGER_SIDECAR"]
    if not os.environ.get("BENCH_IN_NS"):  # inside the namespace no registry is reached
        sh("cargo", "build", "--release", "-p", "outrigger-sidecar", cwd=ROOT)
    return str(Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release" / "outrigger-sidecar")


def service(name, protocol, listen, port, meshed=False):
    """Listener, resource and endpoints of one service that the app calls."""
    outbound = [f"  - service: {name}", f"    listen: 127.0.0.1:{listen}"]
    resource = [f"    - name: bench/{name}", f"      ports: [{{name: main, protocol: {protocol}}}]"]
    endpoints = []
    for instance in INSTANCES:
        endpoints += [f"    - name: bench/{name}/{instance}", "      address: 127.0.0.1",
                      f"      ports: [{{name: main, port: {port}}}]"]
        if meshed:
            endpoints += ["      meshed: true", "      capabilities: [wire.extended-connect]"]
    return outbound, resource, endpoints


def bootstrap(role):
    """The file that the program is started with."""
    head = ["namespace: bench", f"service: {role}", f"instance: {role}-1", "workers: 1"]
    if role == "in":
        inbound = ["inbound:"]
        for name, protocol, listen in (("http", "http", 16002), ("grpc", "grpc", 16202)):
            inbound += [f"  - name: {name}", f"    protocol: {protocol}", f"    listen: 127.0.0.1:{listen}",
                        "    app: 127.0.0.1:9000"]
        return "\n".join(head + inbound) + "\n"
    called = [service("http", "http", 15001, 9000), service("http-mesh", "http", 15002, 16002, meshed=True),
              service("grpc", "grpc", 15201, 9000), service("grpc-mesh", "grpc", 15202, 16202, meshed=True)]
    called += [service(kind, "tcp", 15100 + i, 9000 + i) for kind, i in TCP.items()]
    lines = head + ["outbound:"] + [line for s in called for line in s[0]]
    lines += ["resources:", "  services:"] + [line for s in called for line in s[1]]
    lines += ["  endpoints:"] + [line for s in called for line in s[2]]
    return "\n".join(lines) + "\n"


# Port name, protocol, listener of the caller's sidecar, of the app's sidecar, of the app.
SECURE = [("http", "http", 15003, 16003, 9000), ("grpc", "grpc", 15203, 16203, 9000)] + [
    (kind, "tcp", 15110 + i, 16110 + i, 9000 + i) for kind, i in TCP.items()]


def secure(role):
    """As `bootstrap`, with mutual TLS. One leaf for both ends, as with the other peers."""
    d = certs()
    lines = ["namespace: default", "service: backend", f"instance: {role}-mtls", "workers: 1", "identity:",
             "  post_quantum: false", f"  files: {{chain: {d}/leaf.pem, key: {d}/leaf.key, roots: {d}/ca.pem}}"]
    if role == "in":
        lines += ["inbound:"]
        for name, protocol, _, listen, app in SECURE:
            lines += [f"  - {{name: {name}, protocol: {protocol}, listen: '127.0.0.1:{listen}', app: '127.0.0.1:{app}'}}"]
        return "\n".join(lines + ["resources:", "  proxy: {name: default/backend, mode: strict}"]) + "\n"
    lines += ["outbound:"]
    for name, _, listen, _, _ in SECURE:
        lines += [f"  - {{service: backend, port: {name}, listen: '127.0.0.1:{listen}'}}"]
    named = ", ".join(f"{{name: {name}, protocol: {protocol}}}" for name, protocol, *_ in SECURE)
    ports = ", ".join(f"{{name: {name}, port: {port}}}" for name, _, _, port, _ in SECURE)
    lines += ["resources:", "  services:", f"    - {{name: default/backend, mode: strict, ports: [{named}]}}", "  endpoints:"]
    for instance in INSTANCES:
        lines += [f"    - name: default/backend/{instance}", "      address: 127.0.0.1", f"      ports: [{ports}]",
                  "      meshed: true", "      capabilities: [wire.extended-connect, wire.mtls, wire.tcp-tunnel]"]
    return "\n".join(lines) + "\n"


class Outrigger(Peer):
    """Two sidecars: the caller's and the app's; and two more with mutual TLS."""
    name = "outrigger"

    def proxies(self, topo):
        pair = self.procs[2:] if topo == "mtls" else self.procs[:2]
        return pair[:1] if topo == "hop" else pair

    def tls_server(self):
        return self.procs[3]

    def start(self, cpu):
        exe = program()
        for role, text, port in (("out", bootstrap("out"), 15001), ("in", bootstrap("in"), 16002),
                                 ("out-mtls", secure("out"), 15003), ("in-mtls", secure("in"), 16003)):
            file = WORK / f"{self.name}-{role}.yaml"
            file.write_text(text)
            if role not in SHOWN:
                SHOWN.add(role)
                print(f"--- {exe} --config {file}\n{text}---", flush=True)
            p = Proc(f"{self.name}-{role}", [exe, "--config", file], cpu=cpu)
            self.procs.append(p)
            wait_port(port, 20, p)
