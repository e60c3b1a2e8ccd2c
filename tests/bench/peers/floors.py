"""Floors: no proxy; what a hop costs in the kernel alone; tokio, hyper and h2 as they come."""

from .base import TCP, Peer, Proc, certs, tool, wait_port


class Direct(Peer):
    name = "direct"
    topologies = ("hop",)

    def addr(self, topo, kind):
        return 9000 + TCP.get(kind, 0)

    def start(self, cpu):
        pass


class Floor(Peer):
    """Copies bytes, understands nothing: what one hop costs in the kernel alone."""
    name = "floor"
    mode = "epoll"
    topologies = ("hop", "mesh")

    def start(self, cpu):
        out = ["15001:9000", "15002:16002", "15201:9000", "15202:16202"] + [f"{15100 + i}:{9000 + i}" for i in (1, 2, 3)]
        for role, pairs in (("out", out), ("in", ["16002:9000", "16202:9000"])):
            p = Proc(f"{self.name}-{role}", [tool("bench-copy"), self.mode, *pairs], cpu=cpu)
            self.procs.append(p)
            wait_port(15001 if role == "out" else 16002, 10, p)


class FloorSplice(Floor):
    name = "floor-splice"
    mode = "splice"


class FloorUring(Floor):
    name = "floor-uring"
    mode = "uring"


class HyperFloor(Peer):
    """tokio + hyper + h2 + rustls as they come, nothing on top."""
    name = "hyper-floor"

    def start(self, cpu):
        for role in ("out", "in"):
            p = Proc(f"hyper-floor-{role}", [tool("hyper-floor"), role, certs()], cpu=cpu)
            self.procs.append(p)
            wait_port(15001 if role == "out" else 16002, 10, p)
