"""What every peer shares: the port plan, where programs come from, processes.

Port plan (all on 127.0.0.1), the same for every peer:

  backend          9000 HTTP/1.1 + h2c   9001 echo   9002 source   9003 sink
  one hop          15001 HTTP/1.1   15201 gRPC (h2c)   15101/2/3 TCP echo/source/sink
  mesh, plaintext  15002 HTTP/1.1   15202 gRPC               out -> in 16002 / 16202
  mesh, mTLS       15003 HTTP/1.1   15203 gRPC  15111/2/3 TCP  out -> in 16003 / 16203 / 16111-3
  TLS server only  16004 HTTP/1.1 (TLS 1.3, no client certificate): handshakes a second
"""

import atexit
import os
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent
# Configurations, certificates, logs, Envoy; a build folder, so `cargo clean` removes it.
WORK = Path(os.environ.get("BENCH_WORK") or ROOT / "target" / "bench")
TARGET = Path(os.environ.get("BENCH_TARGET") or WORK / "build")
RT = []  # becomes ["chrt", "-r", "1"] with --rt


def sh(*a, **k):
    return subprocess.run([str(x) for x in a], check=True, **k)


def tool(name):
    p = TARGET / "release" / name
    if not p.exists():
        crate = name if name == "hyper-floor" else "backend"
        env = dict(os.environ, CARGO_TARGET_DIR=str(TARGET))
        sh("cargo", "build", "--release", "--manifest-path", HERE / crate / "Cargo.toml", env=env)
    return str(p)


def certs():
    """A throw-away CA and one leaf that every proxy uses as server and client."""
    d = WORK / "certs"
    done = d / "both.pem"
    if done.exists() and time.time() - done.stat().st_mtime < 7 * 24 * 3600:
        return d
    d.mkdir(parents=True, exist_ok=True)
    d.chmod(0o755)
    q = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    sh("openssl", "req", "-x509", *ec, "-keyout", d / "ca.key", "-out", d / "ca.pem", "-days", "30",
       "-subj", "/CN=bench ca", "-addext", "basicConstraints=critical,CA:TRUE",
       "-addext", "keyUsage=critical,keyCertSign,cRLSign", **q)
    sh("openssl", "req", *ec, "-keyout", d / "leaf.key", "-out", d / "leaf.csr", "-subj",
       "/CN=bench", "-addext", "subjectAltName=DNS:backend", **q)
    (d / "ext").write_text(
        "subjectAltName=DNS:backend,URI:spiffe://bench/ns/default/svc/backend\n"
        "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n"
        "basicConstraints=critical,CA:FALSE\n")
    sh("openssl", "x509", "-req", "-in", d / "leaf.csr", "-CA", d / "ca.pem", "-CAkey", d / "ca.key",
       "-CAcreateserial", "-out", d / "leaf.pem", "-days", "20", "-extfile", d / "ext", **q)
    done.write_text((d / "leaf.pem").read_text() + (d / "leaf.key").read_text())
    for f in d.iterdir():
        f.chmod(0o600 if f.suffix == ".key" else 0o644)
    return d


class Proc:
    """One process of ours, pinned, its output in a log; ended by its own id."""

    def __init__(self, name, cmd, cpu=None):
        self.name = name
        full = list(RT)
        if cpu is not None:
            full += ["taskset", "-c", str(cpu)]
        full += [str(c) for c in cmd]
        logs = WORK / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = open(logs / f"{name}.log", "wb")
        self.p = subprocess.Popen(full, stdout=self.log, stderr=subprocess.STDOUT,
                                  start_new_session=True)
        self.pid = self.p.pid
        atexit.register(self.stop)  # also when the run is broken off

    def cpu_ns(self):
        total = 0
        try:
            for t in os.listdir(f"/proc/{self.pid}/task"):
                try:
                    total += int(open(f"/proc/{self.pid}/task/{t}/schedstat").read().split()[0])
                except OSError:
                    pass
        except OSError:
            pass
        return total

    def ticks(self):
        f = open(f"/proc/{self.pid}/stat").read().rsplit(")", 1)[1].split()
        return int(f[11]), int(f[12])

    def mem(self):
        r = {}
        for line in open(f"/proc/{self.pid}/status"):
            k, _, v = line.partition(":")
            if k in ("VmRSS", "RssAnon", "VmHWM", "Threads"):
                r[k] = int(v.split()[0])
        return r

    def alive(self):
        return self.p.poll() is None

    def stop(self):
        if self.alive():
            self.p.terminate()
            try:
                self.p.wait(3)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait(5)
        self.log.close()


def wait_port(port, secs=60, proc=None):
    end = time.time() + secs
    while time.time() < end:
        with socket.socket() as s:
            s.settimeout(1)
            try:
                s.connect(("127.0.0.1", port))
                return time.time()
            except OSError:
                pass
        if proc is not None and not proc.alive():
            raise RuntimeError(f"{proc.name} ended at once; see its log")
        time.sleep(0.005)
    raise RuntimeError(f"port {port} did not open")


TCP = {"echo": 1, "source": 2, "sink": 3}


def wait_closed(ports=(15001, 16002, 15201), secs=10):
    """No earlier peer listens any more (io_uring closes its sockets late)."""
    end = time.time() + secs
    for port in ports:
        while time.time() < end:
            with socket.socket() as s:
                s.settimeout(1)
                if s.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.05)


class Peer:
    """Base: knows the common port plan."""

    name = ""
    topologies = ("hop", "mesh", "mtls")
    kinds = ("http", "grpc", "echo", "source", "sink")
    ip = "127.0.0.1"
    left_out = {}  # topology: why this peer does not take part

    def __init__(self):
        self.procs = []

    def supports(self, topo, kind):
        if topo not in self.topologies or kind not in self.kinds:
            return False
        return not (topo == "mesh" and kind in TCP)

    def addr(self, topo, kind):
        if kind in TCP:
            return 15100 + TCP[kind] + (10 if topo == "mtls" else 0)
        return {"http": 15000, "grpc": 15200}[kind] + {"hop": 1, "mesh": 2, "mtls": 3}[topo]

    def start(self, cpu):
        raise NotImplementedError

    def proxies(self, topo):
        """Processes whose CPU counts for a topology."""
        return self.procs if topo != "hop" else self.procs[:1]

    def tls_server(self):
        """The process that terminates TLS."""
        return self.procs[1]

    def stop(self):
        for p in self.procs:
            p.stop()
        self.procs = []
