"""greeter: asks hello for its words and adds its own. All it knows of hello is HELLO_URL."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen


class Greeter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            with urlopen(os.environ["HELLO_URL"] + self.path) as hello:
                status, text = 200, hello.read() + b"How are you?\n"
        except HTTPError as refused:
            status, text = refused.code, refused.read()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Greeter).serve_forever()
