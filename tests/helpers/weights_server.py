"""A server on the loopback address with files for downloads, whose connections can break.

It speaks as much of the Hugging Face hub's protocol as its client needs for a file of a model: a
HEAD request for ``/OWNER/REPO/resolve/REVISION/FILE`` is answered with the commit and the file's
version; large files are elsewhere (``localhost`` stands for the other host), named by their
SHA-256. Files are sent in parts if asked for, and if they are still of the same version.
"""

import contextlib
import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = 10_000


@dataclass
class Server:
    """What is served, and what was asked for.

    Attributes:
        files: content by path: "/weights.pth", or "/OWNER/REPO/FILE" for models of the hub.
        cuts: of the next transfers, the number of bytes after which each connection breaks.
        requests: method, path and range of those that were answered.
        changed: whether content is sent by another SHA-256 than it has.
        shifted: number of bytes before which a part begins.
        failing: name of a file for which the server says that it is overloaded.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    changed: bool = False
    shifted: int = 0
    failing: str | None = None
    port: int = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def sent(self, path):
        """The ranges of the transfers of a file, in their order."""
        return [part for method, name, part in self.requests if (method, name) == ("GET", path)]


def _digest(content):
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def serving():
    """A :class:`Server` that answers inside."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            state.requests.append((self.command, self.path, self.headers.get("Range")))
            model = re.fullmatch(r"(/[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if state.failing and self.path.endswith(state.failing):
                self.refuse({}, 503)
            elif model:
                self.of_a_model(*model.groups(), with_body)
            elif self.path.startswith("/large/"):
                by_digest = {_digest(content): content for content in state.files.values()}
                content = by_digest[self.path.removeprefix("/large/")]
                self.send(bytes(len(content)) if state.changed else content, with_body)
            elif self.path in state.files:
                self.send(state.files[self.path], with_body)
            else:
                self.refuse({})

        def of_a_model(self, repo, revision, name, with_body):
            known = {path for path in state.files if path.startswith(f"{repo}/")}
            if not known:
                return self.refuse({"X-Error-Code": "RepoNotFound"}, 401)
            headers = {"X-Repo-Commit": COMMIT}
            if revision not in ("main", "v1", COMMIT):
                return self.refuse({"X-Error-Code": "RevisionNotFound"})
            if f"{repo}/{name}" not in known:
                return self.refuse({**headers, "X-Error-Code": "EntryNotFound"})
            content = state.files[f"{repo}/{name}"]
            if len(content) < _LARGE:
                return self.send(content, with_body, headers)
            digest = _digest(content)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            headers |= {"Location": f"http://localhost:{state.port}/large/{digest}"}
            self.start(302, {**headers, "Content-Length": "0"})

        def send(self, content, with_body, headers=()):
            tag = f'"{_digest(content)}"'
            start = 0
            part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if part and self.headers.get("If-Range", tag) == tag:
                start = int(part[1])
            if start >= len(content):
                return self.refuse({}, 416)
            body = content[start:]
            answer = {"Content-Length": str(len(body)), "ETag": tag, "Accept-Ranges": "bytes"}
            if start:
                # a faulty server begins elsewhere
                start -= state.shifted
                answer["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.start(206 if start else 200, {**dict(headers), **answer})
            if with_body and state.cuts:
                self.wfile.write(body[: state.cuts.pop(0)])
                self.close_connection = True
            elif with_body:
                self.wfile.write(body)

        def refuse(self, headers, status=404):
            self.start(status, {**headers, "Content-Length": "0"})

        def start(self, status, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
