"""The server of the page: static files, orders as JSON, the state of jobs, and the files that they made."""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import re
import socket
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from socketserver import ThreadingTCPServer
from typing import Any

from PIL import Image
from rich.console import Console

from fewstep.console import say
from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.app.jobs import DONE, Job, Jobs
from fewstep_shapes3d.app.maker import Maker
from fewstep_shapes3d.app.orders import order_of

LARGEST = 32 * 2**20  # bytes of a picture
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
OWN, REPORT = files("fewstep_shapes3d.app") / "page", files("fewstep.benchmark") / "page"
STATIC = {"": OWN / "app.html", **{name: OWN / name for name in ("app.js", "app.css")},
          **{name: REPORT / name for name in ("viewer.js", "page.css")}}  # fmt: skip


class Server(ThreadingTCPServer):
    """Serves the page.

    Args:
        maker: makes objects.
        host: to listen on.
        port: 0 is any free one.
        console: where a line is printed for each object.

    Raises:
        FewstepError: a host that is not of this machine, or a port that is taken.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, maker: Maker, host: str, port: int, console: Console) -> None:
        self.maker, self.console = maker, console
        self.examples = {name: _png(picture) for name, picture in maker.examples.items()}
        try:
            if not host:  # it would mean every address
                raise OSError
            if ":" in host:
                self.address_family = socket.AF_INET6
            super().__init__((host, port), _Handler)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise invalid("--port", port, f"another one, or 0 for any that is free; {error.strerror}") from None
            raise invalid("--host", host, "an address of this machine, such as 127.0.0.1 or 0.0.0.0") from None
        self.jobs = Jobs(maker, self._ended)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the page."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """Where the page is, for a browser on this machine."""
        host = str(self.server_address[0])
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        host = anywhere.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def close(self) -> None:
        """Stop after the current step."""
        self.server_close()
        self.jobs.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print errors, except for a browser that went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _ended(self, job: Job) -> None:
        order, choice = job.order, self.maker.choices[job.order.choice]
        steps = "+".join(map(str, order.steps))
        passed = f" in {sum(job.made.seconds.values()):.1f} s" if job.made else ""
        why = f": {job.text}" if job.text else ""
        say(self.console, f"{order.name}, {choice.label}, {steps} steps, seed {order.seed}: {job.state}{passed}{why}")


def _png(picture: Any) -> bytes:
    from fewstep_shapes3d.pictures.white import on_white

    buffer = io.BytesIO()
    Image.fromarray(on_white(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a line for each object is enough."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        if not self._trusted():
            self._refuse(HTTPStatus.FORBIDDEN, "this address is not the page's own")
        elif path in STATIC:
            self._send(STATIC[path].read_bytes(), TYPES[STATIC[path].name.rpartition(".")[2]])
        elif path == "about":
            self._json(_about(self.server))
        elif (found := re.fullmatch(r"examples/(\d+)", path)) and int(found[1]) < len(self.server.examples):
            self._send(list(self.server.examples.values())[int(found[1])], "image/png")
        elif (job := self._job(path)) and path.endswith(".glb") and job.made:
            self._send(job.made.glb, "model/gltf-binary")
        elif job and not path.endswith(".glb"):
            self._json(_state(job, self.server.jobs))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page here, or no longer")

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if not self._trusted():
            self._refuse(HTTPStatus.FORBIDDEN, "this address is not the page's own")
        elif self.path != "/jobs":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page here")
        elif size > LARGEST * 4 // 3 + 4096:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"picture: accepted: at most {LARGEST >> 20} MiB")
        else:
            try:
                order = order_of(self.rfile.read(size), self.server.maker)
                self.server.maker.check(order)
                self._json({"number": self.server.jobs.add(order).number})
            except FewstepError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def do_DELETE(self) -> None:
        job = self._job(self.path.lstrip("/")) if self._trusted() else None
        if job:
            self.server.jobs.cancel(job)
            self._json({})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such job here, or no longer")

    def _job(self, path: str) -> Job | None:
        found = re.fullmatch(r"jobs/(\d{1,9})(/[^/]*\.glb)?", path)
        return self.server.jobs.get(int(found[1])) if found else None

    def _trusted(self) -> bool:
        """Whether the page itself sent the request. Other sites open in the browser may neither order nor read: the
        browser names them in ``Origin``, or in ``Host`` if a site's name was made to resolve to this address."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            return False
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        return not self.server.local or name in ("localhost", "[::1]") or name.startswith("127.")

    def _json(self, value: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._json({"error": message}, status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


def _about(server: Server) -> dict[str, Any]:
    """What the page asks for when it opens."""
    maker = server.maker
    return {
        "title": maker.title,
        "stages": list(maker.stages),
        "choices": [vars(choice) for choice in maker.choices],
        "examples": list(server.examples),
        "largest": LARGEST,
    }


def _state(job: Job, jobs: Jobs) -> dict[str, Any]:
    found: dict[str, Any] = {"state": job.state, "text": job.text, "ahead": jobs.ahead(job)}
    if job.state == DONE and (made := job.made):
        name = re.sub(r"[^\w.-]+", "-", f"{job.order.name}-{jobs.maker.choices[job.order.choice].label}").strip("-")
        file = f"{name}-{'-'.join(map(str, job.order.steps))}-seed-{job.order.seed}.glb"
        found |= {
            "file": f"jobs/{job.number}/{file}",
            "size": len(made.glb),
            "seconds": dict(made.seconds),
            "counts": dict(made.counts),
            "how": list(made.how),
            "warnings": list(made.warnings),
        }
    return found
