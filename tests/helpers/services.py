"""A web server of this machine that plays the Hugging Face Hub, Google Drive, and others."""

import base64
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from huggingface_hub import constants

LISTING = "<html><head><title>folder</title></head><body>{}</body></html>"
ENTRY = '<a href="https://drive.google.com/file/d/{}/view?usp=drive_web">{}</a>'
# as Google asks before it sends a file that it has not scanned for viruses
CONFIRM = (
    '<html><body><form id="download-form" method="get" '
    'action="https://drive.usercontent.google.com/download">'
    '<input type="hidden" name="id" value="{}"><input type="hidden" name="confirm" value="t">'
    "</form></body></html>"
)
QUOTA = '<html><body><p class="uc-error-subcaption">Too many users have viewed it</p></body></html>'


class Site:
    """What the server has, how it fails, and what it was asked.

    Attributes:
        address: `http://127.0.0.1:PORT`.
        files: content by path.
        drive: of Google Drive, by folder id: a file's content by its name.
        commits: of the Hub: branch or tag to commit; a commit's files are `files` of
            `ORG/REPO/COMMIT/FILE`.
        refusals: how many files still are not sent, since the server is busy.
        breaks: how many transfers still end in the middle.
        stalls: how many still stop in the middle for `pause` seconds.
        has_ranges: whether it sends parts of files.
        is_over_quota: whether Google Drive refuses.
        asked: (method, path, headers) of the requests.
        uploaded: content by name, of what was committed to the Hub.
        stop: ends the server.
    """

    stop: Callable[[], None]

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.drive: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.refusals, self.breaks, self.stalls, self.pause = 0, 0, 0, 0.0
        self.has_ranges, self.is_over_quota = True, False
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.uploaded: dict[str, bytes] = {}

    @property
    def ranges(self) -> list[str]:
        """The ranges that were asked for, in order; a redirect is not counted twice."""
        asked = [headers for _, path, headers in self.asked if not path.startswith("/moved/")]
        return [headers["Range"] for headers in asked if "Range" in headers]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for all services; the first part of a path may be the host that is meant."""

    site: Site

    def log_message(self, *_: Any) -> None:
        pass

    def _note(self) -> tuple[str, dict[str, list[str]]]:
        self.site.asked.append(
            (self.command, self.path, {key.title(): value for key, value in self.headers.items()})
        )
        parts = urlsplit(self.path)
        return parts.path, parse_qs(parts.query)

    def do_GET(self) -> None:
        path, query = self._note()
        if path.startswith("/moved/"):
            self._redirect(self.site.address + path.removeprefix("/moved"))
        elif "/resolve/" in path:
            self._hub(path)
        elif path == "/drive.google.com/embeddedfolderview":
            files = self.site.drive.get(query["id"][0])
            if files is None:
                self.send_error(404)
                return
            entries = (ENTRY.format(drive_id(name), name) for name in files)
            self._send(LISTING.format("".join(entries)).encode(), "text/html")
        elif path == "/drive.google.com/uc":
            page = QUOTA if self.site.is_over_quota else CONFIRM.format(query["id"][0])
            self._send(page.encode(), "text/html")
        elif path == "/drive.usercontent.google.com/download":
            (name, content), *_ = (
                item
                for files in self.site.drive.values()
                for item in files.items()
                if drive_id(item[0]) == query["id"][0]
            )
            self._file(content, {"Content-Disposition": f'attachment; filename="{name}"'})
        elif path in self.site.files:
            self._file(self.site.files[path])
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path, _ = self._note()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if path == "/api/repos/create":
            if self.headers["Authorization"] != "Bearer hf_right":
                self.send_error(401)
                return
            self._json({"url": f"{self.site.address}/org/name", "name": "org/name"})
        elif "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.site.uploaded[value["path"]] = base64.b64decode(value["content"])
            commit = "0" * 40
            address = f"{self.site.address}/org/name/commit/{commit}"
            self._json({"commitOid": commit, "commitUrl": address, "success": True})
        else:  # the check of a model card
            self._json({"errors": [], "warnings": []})

    def _hub(self, path: str) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = self.site.commits.get(revision, revision)
        stored = f"/{repository}/{commit}/{name}"
        if stored not in self.site.files:
            missing = (
                "EntryNotFound" if commit in self.site.commits.values() else "RevisionNotFound"
            )
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.site.files[stored]
        # to another host, as the Hub sends its clients to a network of its own
        self._redirect(
            self.site.address.replace("127.0.0.1", "localhost") + stored,
            {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{sha256(content).hexdigest()}"',
            },
        )

    def _redirect(self, address: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(302)
        for key, value in {"Location": address, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.site.refusals:
            self.site.refusals -= 1
            self.send_error(503)
            return
        tag = f'"{sha256(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_same = self.headers["If-Range"] in (None, tag)
        start = int(wanted[1]) if wanted and is_same and self.site.has_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        rest = content[start:]
        given = {"Content-Type": "application/octet-stream", "Content-Length": str(len(rest)),
                 "ETag": tag, **(headers or {})}  # fmt: skip
        if start:
            given["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in given.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(rest) // 2
        self.wfile.write(rest[:half])
        self.wfile.flush()
        if self.site.breaks:
            self.site.breaks -= 1
            return
        if self.site.stalls:
            self.site.stalls -= 1
            time.sleep(self.site.pause)
        self.wfile.write(rest[half:])


def drive_id(name: str) -> str:
    """The id that a file of this name has on Google Drive."""
    return sha256(name.encode()).hexdigest()[:33]


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Site]:
    """Run a server that stands for all services; the Hub's cache is in `folder`."""
    site = Site()
    handler = type("Handler", (Handler,), {"site": site})
    send = requests.adapters.HTTPAdapter.send

    def redirected(self: Any, request: Any, *rest: Any, **options: Any) -> Any:
        parts = urlsplit(request.url)
        if parts.hostname and parts.hostname.endswith("google.com"):
            request.url = f"{site.address}/{parts.hostname}{parts.path}?{parts.query}"
        return send(self, request, *rest, **options)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
        monkeypatch.setattr(constants, "ENDPOINT", site.address)
        template = site.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # whole chunks are what is kept of a transfer that breaks, and our files are small
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
        monkeypatch.setattr(import_module("gdown.download"), "CHUNK_SIZE", 4096)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        site.stop = stop
        yield site
        server.shutdown()
