"""A stand-in for the Hub and for a web server, on loopback: downloads with ranges, creation, commits."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000  # bytes from which a file has a checksum, as in Git LFS


@dataclass
class Hub:
    """Repositories by name, files by their path in them, and what the server shall do wrong.

    Attributes:
        status: of all answers, instead of the right one.
        error_code: of them, as the Hub names it.
        cut: bytes of a file after which the connection is closed.
        stall: waits there instead of closing, until the client is gone.
        wrong_checksum: the Hub names another checksum than the file's.
        ranges: requested, in order.
        private: whether the last repository was made private.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int | None = None
    error_code: str = ""
    cut: int | None = None
    stall: bool = False
    wrong_checksum: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    freed: threading.Event = field(default_factory=threading.Event)
    ranges: list[str | None] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None

    def checksum(self, content: bytes) -> str:
        return hashlib.sha256(content + (b"!" if self.wrong_checksum else b"")).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        hub.freed.set()
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        if self.hub.status is not None:
            self._answer(self.hub.status, b"{}", {"X-Error-Code": self.hub.error_code})
        elif path.startswith("api/models/"):
            self._describe(path.removeprefix("api/models/").partition("/revision/")[0])
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            self._file(self.hub.files.get(repository, {}).get(rest.partition("/")[2]))
        else:
            self._file(self.hub.files.get("", {}).get(path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        if self.hub.status is not None:
            self._json({}, self.hub.status)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.files.setdefault(name, {})
            self.hub.private = wanted.get("private") or wanted.get("visibility") == "private"
            self._json({"url": f"{self.hub.url}/{name}"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            kinds = [(f["path"], "lfs" if f["size"] >= LARGE else "regular") for f in files]
            self._json(
                {"files": [{"path": p, "uploadMode": kind, "shouldIgnore": False} for p, kind in kinds]}
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            action = {"upload": {"href": f"{self.hub.url}/upload"}}
            self._json({"transfer": "basic", "objects": [{**o, "actions": action} for o in objects]})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._json({})

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.uploads[hashlib.sha256(body).hexdigest()] = body
        self._json({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[name][value["path"]] = self.hub.uploads[value["oid"]]
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _describe(self, name: str) -> None:
        if name not in self.hub.files:
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": "0", **self._lfs(content)}
            for path, content in self.hub.files[name].items()
        ]
        self._json({"id": name, "sha": COMMIT, "siblings": siblings})

    def _lfs(self, content: bytes) -> dict[str, Any]:
        lfs = {"sha256": self.hub.checksum(content), "size": len(content), "pointerSize": 1}
        return {"lfs": lfs} if len(content) >= LARGE else {}

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.command == "GET":
            self.hub.ranges.append(wanted)
        if start >= len(content):
            self._answer(416, b"", {})
            return
        headers = {
            "ETag": f'"{self.hub.checksum(content)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if wanted else 200, content[start:], headers)

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut if len(body) >= LARGE else None
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            if self.hub.stall:
                self.hub.stalled.set()
                self.hub.freed.wait(60)
