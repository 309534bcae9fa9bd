"""A small web server for the tests of downloads: it can cut transfers, fail and count."""

import contextlib
import http.server
import threading
from dataclasses import dataclass, field


@dataclass
class Site:
    """`files` {name: bytes} are served; a request takes the next of `cuts` (bytes until it breaks) and `failures`."""

    files: dict
    url: str = ""
    cuts: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    ranges: bool = True
    requests: list = field(default_factory=list)  # (name, the range that was asked for)


@contextlib.contextmanager
def serve(files):
    site = Site(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            site.requests.append((name, wanted))
            if site.failures and (status := site.failures.pop(0)):
                return self.send_error(status)
            if name not in site.files:
                return self.send_error(404)
            content = site.files[name]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + site.cuts.pop(0) if site.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
