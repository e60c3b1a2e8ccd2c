"""One class a peer: configuration, start, stop, which processes count. `base` has the port plan."""

from .base import RT, WORK, Peer, Proc, certs, sh, tool, wait_closed, wait_port
from .envoy import Envoy, EnvoyFull, EnvoyTwo, envoy_bin, envoy_config
from .floors import Direct, Floor, FloorSplice, FloorUring, HyperFloor
from .haproxy import Haproxy
from .nginx import Nginx
from .outrigger import Bare, Outrigger, Policies, program

ALL = {c.name: c for c in (Direct, Envoy, EnvoyFull, EnvoyTwo, Haproxy, Nginx, Floor, FloorSplice,
                           FloorUring, HyperFloor, Outrigger, Policies, Bare)}

__all__ = ["ALL", "RT", "WORK", "Peer", "Proc", "certs", "envoy_bin", "envoy_config", "program", "sh", "tool",
           "wait_closed", "wait_port"]
