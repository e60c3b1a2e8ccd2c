"""HAProxy, one thread."""

from .base import WORK, Peer, Proc, certs, wait_port


class Haproxy(Peer):
    name = "haproxy"

    def config(self, role, d):
        out = ["global", " nbthread 1", " maxconn 8000", " tune.ssl.default-dh-param 2048",
               " ssl-default-bind-options ssl-min-ver TLSv1.3", " ssl-default-server-options ssl-min-ver TLSv1.3",
               " ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256",
               " ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256",
               " tune.h2.initial-window-size 1048576", " tune.h2.max-concurrent-streams 1000",
               "defaults", " mode http", " timeout client 120s", " timeout server 120s", " timeout connect 5s",
               " http-reuse always", " maxconn 8000"]
        srv_tls = f"ssl crt {d}/both.pem ca-file {d}/ca.pem verify required no-ssl-reuse"
        bind_tls = f"ssl crt {d}/both.pem ca-file {d}/ca.pem verify required no-tls-tickets"

        def fe(name, port, server, tls="", mode="http"):
            out.extend([f"listen {name}", f" mode {mode}", f" bind 127.0.0.1:{port} {tls}", f" server s {server}"])

        pool = "pool-max-conn 10000"
        if role == "out":
            for base, proto, alpn in ((0, "h1", "http/1.1"), (200, "h2", "h2")):
                p = "proto h2" if proto == "h2" else ""
                fe(f"{proto}_hop", 15001 + base, f"127.0.0.1:9000 {p} {pool}")
                fe(f"{proto}_mesh", 15002 + base, f"127.0.0.1:{16002 + base} {p} {pool}")
                fe(f"{proto}_mtls", 15003 + base, f"127.0.0.1:{16003 + base} {srv_tls} alpn {alpn} {pool}")
            for i in (1, 2, 3):
                fe(f"t{i}_hop", 15100 + i, f"127.0.0.1:{9000 + i}", mode="tcp")
                fe(f"t{i}_mtls", 15110 + i, f"127.0.0.1:{16110 + i} {srv_tls}", mode="tcp")
        else:
            for base, proto in ((0, "h1"), (200, "h2")):
                p = "proto h2" if proto == "h2" else ""
                fe(f"{proto}_in", 16002 + base, f"127.0.0.1:9000 {p} {pool}")
                fe(f"{proto}_in_mtls", 16003 + base, f"127.0.0.1:9000 {p} {pool}", bind_tls + " alpn h2,http/1.1")
            fe("tls", 16004, f"127.0.0.1:9000 {pool}", f"ssl crt {d}/both.pem no-tls-tickets alpn http/1.1")
            for i in (1, 2, 3):
                fe(f"t{i}_in", 16110 + i, f"127.0.0.1:{9000 + i}", bind_tls, "tcp")
        return "\n".join(out) + "\n"

    def start(self, cpu):
        for role in ("out", "in"):
            f = WORK / f"haproxy-{role}.cfg"
            f.write_text(self.config(role, certs()))
            p = Proc(f"haproxy-{role}", ["haproxy", "-db", "-q", "-f", f], cpu=cpu)
            self.procs.append(p)
            wait_port(15001 if role == "out" else 16002, 20, p)
