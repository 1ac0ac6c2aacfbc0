"""Headless Chromium, driven over pipes by the DevTools protocol. A test waits for what a page does, not for a time."""

from __future__ import annotations

import base64
import fcntl
import io
import itertools
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HUNG = 300  # seconds after which the browser is ended, so that a test fails rather than hangs
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run")
WAITING = """
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const until = async (met) => { while (!met()) await frame(); };
  const dark = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
    .some((value) => value > 0 && value < 200);
"""  # for scripts of ``Browser.run``


class Browser:
    """A page in a browser of its own; use it as a context manager.

    Args:
        address: of the page.
        profile: folder that does not exist yet.
        size: of the window in pixels.

    Attributes:
        errors: exceptions that no script of the page caught.
    """

    def __init__(self, address: str, profile: Path, size: tuple[int, int]) -> None:
        ours, theirs = os.pipe(), os.pipe()  # (read, write): what the browser says, what it is told
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs[0], ours[1])]  # away from 3 and 4
        command = [str(CHROMIUM), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [*command, f"--window-size={size[0]},{size[1]}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: [os.dup2(end, number) for number, end in zip((3, 4), ends, strict=True)] and None,
        )
        for end in (*ends, theirs[0], ours[1]):
            os.close(end)
        self.pipes = os.fdopen(ours[0], "rb"), os.fdopen(theirs[1], "wb", buffering=0)
        self.guard = threading.Timer(HUNG, self.process.kill)
        self.guard.start()
        self.numbers, self.session, self.rest = itertools.count(1), dict[str, str](), b""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.run("while (document.readyState !== 'complete' || location.href === 'about:blank') await frame();")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.guard.cancel()
        self.process.kill()
        self.process.wait()
        for pipe in self.pipes:
            pipe.close()

    def run(self, script: str) -> Any:
        """The value that the body of an async function returns on the page; it may use what ``WAITING`` defines."""
        expression = f"(async () => {{ {WAITING} {script} }})()"
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def picture(self) -> Image.Image:
        """The window as it is seen now, RGB."""
        return Image.open(io.BytesIO(base64.b64decode(self.call("Page.captureScreenshot")["data"]))).convert("RGB")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers; events that come before are looked through for exceptions."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **self.session}
        self.pipes[1].write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"]))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self.rest:
            more = os.read(self.pipes[0].fileno(), 1 << 16)
            assert more, "the browser has ended"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return message
