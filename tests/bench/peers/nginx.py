"""nginx, one process."""

import re
import subprocess
from pathlib import Path

from .base import WORK, Peer, Proc, certs, wait_port


class Nginx(Peer):
    name = "nginx"

    def config(self, role, d, run):
        v = subprocess.run(["nginx", "-V"], capture_output=True, text=True).stderr
        mod = re.search(r"--modules-path=(\S+)", v)
        mod = Path(mod.group(1)) / "ngx_stream_module.so" if mod else Path("none")
        head = (f"load_module {mod};\n" if mod.exists() else "") + f"""
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536;
pid {run}/nginx-{role}.pid; error_log {run}/nginx-{role}.err error;
events {{ worker_connections 30000; }}
"""
        tls_c = f"""
 proxy_ssl_certificate {d}/leaf.pem; proxy_ssl_certificate_key {d}/leaf.key;
 proxy_ssl_trusted_certificate {d}/ca.pem; proxy_ssl_verify on; proxy_ssl_name backend;
 proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse off;"""
        grpc_c = tls_c.replace("proxy_ssl", "grpc_ssl")
        tls_s = f"""ssl_certificate {d}/leaf.pem; ssl_certificate_key {d}/leaf.key; ssl_protocols TLSv1.3;
 ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_session_tickets off; ssl_session_cache off;"""
        mtls_s = tls_s + f" ssl_client_certificate {d}/ca.pem; ssl_verify_client on;"
        http, stream = [], []

        def up(name, port):
            http.append(f"upstream {name} {{ server 127.0.0.1:{port}; keepalive 1024; keepalive_requests 100000000; }}")

        def h1(port, to, tls_in="", tls_out=False):
            http.append(f"""server {{ listen 127.0.0.1:{port} {'ssl' if tls_in else ''} backlog=4096; {tls_in}
 location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http{'s' if tls_out else ''}://{to}; {tls_c if tls_out else ''} }} }}""")

        def h2(port, to, tls_in="", tls_out=False):
            http.append(f"""server {{ listen 127.0.0.1:{port} {'ssl' if tls_in else ''} http2 backlog=4096; {tls_in}
 location / {{ grpc_pass grpc{'s' if tls_out else ''}://{to}; {grpc_c if tls_out else ''} }} }}""")

        def tcp(port, to, tls_in="", tls_out=False):
            stream.append(f"""server {{ listen 127.0.0.1:{port} {'ssl' if tls_in else ''} backlog=4096; {tls_in}
 proxy_pass 127.0.0.1:{to}; {'proxy_ssl on;' + tls_c if tls_out else ''} }}""")

        if role == "out":
            for base, f in ((0, h1), (200, h2)):
                for i, port in ((1, 9000), (2, 16002 + base), (3, 16003 + base)):
                    up(f"u{base}_{i}", port)
                    f(15000 + base + i, f"u{base}_{i}", tls_out=i == 3)
            for i in (1, 2, 3):
                tcp(15100 + i, 9000 + i)
                tcp(15110 + i, 16110 + i, tls_out=True)
        else:
            up("app1", 9000)
            up("app2", 9000)
            h1(16002, "app1")
            h1(16003, "app1", mtls_s)
            h1(16004, "app1", tls_s)
            h2(16202, "app2")
            h2(16203, "app2", mtls_s)
            for i in (1, 2, 3):
                tcp(16110 + i, 9000 + i, mtls_s)
        temp = "".join(f"{k}_temp_path {run}/nginx-{role}-{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return (head + "http { access_log off; keepalive_requests 100000000; keepalive_timeout 120s;"
                + " http2_max_concurrent_streams 1000; client_max_body_size 0; client_body_buffer_size 64k;"
                + " proxy_request_buffering off; proxy_buffer_size 16k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k;"
                + " proxy_max_temp_file_size 0; " + temp + "\n"
                + "\n".join(http) + "\n}\nstream {\n" + "\n".join(stream) + "\n}\n")

    def start(self, cpu):
        run = WORK / "nginx"
        run.mkdir(parents=True, exist_ok=True)
        for role in ("out", "in"):
            f = run / f"{role}.conf"
            f.write_text(self.config(role, certs(), run))
            p = Proc(f"nginx-{role}", ["nginx", "-c", f], cpu=cpu)
            self.procs.append(p)
            wait_port(15001 if role == "out" else 16002, 20, p)
