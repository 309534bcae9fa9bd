"""A small web server for the tests of downloads: it can cut transfers, fail and count."""

import contextlib
import http.server
import threading
from dataclasses import dataclass, field


@dataclass
class Site:
    """`files` {name: bytes} are served; a request takes the next of `cuts` (bytes until it breaks) and `failures`.

    headers: {name: value} in the place of the usual ones, None for none; redirects: {name: address}; drip: (bytes,
    seconds): the content comes in pieces of so many bytes, with a pause after each.
    """

    files: dict
    url: str = ""
    cuts: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    ranges: bool = True
    headers: dict = field(default_factory=dict)
    redirects: dict = field(default_factory=dict)
    drip: tuple = ()
    stopped: threading.Event = field(default_factory=threading.Event)
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
            if name in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[name])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if name not in site.files:
                return self.send_error(404)
            content = site.files[name]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            headers = {"Content-Length": str(len(content) - start)}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            for title, value in (headers | site.headers).items():
                if value is not None:
                    self.send_header(title, value)
            self.end_headers()
            end = start + site.cuts.pop(0) if site.cuts else len(content)
            size, pause = site.drip or (max(1, len(content)), 0)
            with contextlib.suppress(OSError):  # the other side has hung up
                for first in range(start, end, size):
                    self.wfile.write(content[first : min(first + size, end)])
                    if pause and site.stopped.wait(pause):
                        break

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield site
    finally:
        site.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
