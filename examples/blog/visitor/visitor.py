"""visitor: how many people have read a blog. HTTP/JSON, Python's standard library and nothing else.

A visitor counts once a day and blog. It knows nothing of blogs: any id can be counted for.
"""

import fcntl
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit

SCHEMA = """
CREATE TABLE IF NOT EXISTS visit (
    blog_id TEXT NOT NULL, visitor TEXT NOT NULL, day TEXT NOT NULL, PRIMARY KEY (blog_id, visitor, day)
) WITHOUT ROWID;
"""
LARGEST_BODY = 64 * 1024
GRACE_SECONDS = 5


class Refused(Exception):
    """An answer that is an error: a status, a code for programs and words for people."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.answer = status, {"error": {"code": code, "message": message}}


class Store:
    """The database file; one connection, used by one thread at a time."""

    def __init__(self, path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        # SQLite's switch to WAL fails at once when another replica is just at it, whatever the timeout says.
        with open(os.path.splitext(path)[0] + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.executescript(SCHEMA)

    def visit(self, blog_id, visitor):
        day = time.strftime("%Y-%m-%d", time.gmtime())
        with self.lock:
            done = self.db.execute("INSERT OR IGNORE INTO visit VALUES (?, ?, ?)", (blog_id, visitor, day))
            return done.rowcount == 1

    def count(self, blog_id):
        query = "SELECT count(*), count(DISTINCT visitor) FROM visit WHERE blog_id = ?"
        with self.lock:
            visits, visitors = self.db.execute(query, (blog_id,)).fetchone()
        return {"blog_id": blog_id, "visits": visits, "visitors": visitors}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "visitor"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.serve(self.get)

    def do_POST(self):
        self.serve(self.post)

    def get(self):
        url = urlsplit(self.path)
        if url.path == "/health":
            return 200, {"status": "ok"}
        if url.path == "/count":
            return 200, self.server.store.count(text(parse_qs(url.query).get("blog_id", [None])[0], "blog_id"))
        raise Refused(404, "not_found", "no such path")

    def post(self):
        body = self.body()
        if urlsplit(self.path).path != "/visits":
            raise Refused(404, "not_found", "no such path")
        blog_id, visitor = text(body.get("blog_id"), "blog_id"), text(body.get("visitor"), "visitor")
        counted = self.server.store.visit(blog_id, visitor)
        return 201 if counted else 200, {**self.server.store.count(blog_id), "counted": counted}

    def body(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise Refused(411, "malformed", "a body needs a Content-Length")
        if int(length) > LARGEST_BODY:
            self.close_connection = True
            raise Refused(413, "malformed", "the body is too long")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as cause:
            raise Refused(400, "malformed", f"the body is no JSON: {cause}") from None
        if not isinstance(body, dict):
            raise Refused(422, "invalid", "the body must be an object")
        return body

    def serve(self, work):
        with self.server.busy:
            self.server.running += 1
        try:
            try:
                status, answer = work()
            except Refused as refused:
                status, answer = refused.answer
            except sqlite3.Error as cause:
                print(f"database: {cause}", file=sys.stderr, flush=True)
                status, answer = 500, {"error": {"code": "internal", "message": "the database refused"}}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        finally:
            with self.server.busy:
                self.server.running -= 1
                self.server.busy.notify_all()

    def log_request(self, code="-", size="-"):
        if self.command == "POST":
            print(f"{self.command} {self.path} {code}", flush=True)


class Server(ThreadingHTTPServer):
    # A kept-alive connection must not keep the process: the calls in flight are waited for by number.
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, store):
        super().__init__(address, Handler)
        self.store = store
        self.busy = threading.Condition()
        self.running = 0

    def server_bind(self):
        # HTTPServer's own asks the resolver for this host's name, which may take seconds and serves nobody here.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def handle_error(self, request, client_address):
        # Whoever hangs up before the answer has had enough of it; that is no fault of ours.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def text(value, field):
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise Refused(422, "invalid", f"{field} must be a text of 1 to 200 characters")
    return value


def main():
    path = os.environ.get("DB") or os.path.join(os.environ.get("DATA_DIR", ""), "visitor.db")
    address = os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])
    server = Server(address, Store(path))
    # shutdown() waits for the loop that the signal interrupts, so it runs on a thread of its own.
    stop = lambda *_: threading.Thread(target=server.shutdown).start()  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on {address[0]}:{address[1]}", flush=True)
    server.serve_forever(poll_interval=0.1)
    print("stopping", flush=True)
    server.server_close()
    with server.busy:
        server.busy.wait_for(lambda: server.running == 0, timeout=GRACE_SECONDS)


if __name__ == "__main__":
    main()
