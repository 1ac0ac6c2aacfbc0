"""``fewstep app``: orders, the queue, what is refused and who may ask; the page in a browser; TRELLIS behind it."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import refusal
from fewstep_shapes3d.app import run
from fewstep_shapes3d.app.jobs import KEPT, MOST_WAITING
from fewstep_shapes3d.app.maker import Choice, Made, Order
from fewstep_shapes3d.app.server import Server
from fewstep_shapes3d.export.glb import glb
from fewstep_shapes3d.mesh.voxels import voxel_mesh
from PIL import Image
from rich.console import Console

from fewstep.cli import main
from fewstep.errors import FewstepError

CUBE = torch.zeros(6, 6, 6, dtype=torch.bool)
CUBE[2:4, 2:4, 2:4] = True


class Stub:
    """A maker of cubes. It waits for ``go`` where a test clears it."""

    title, stages = "TRELLIS: a <b>stub</b>", ("structure", "latents")
    choices = (Choice("quick <i>", (1, 1), ("made for 1, 2", "made for 1")), Choice("slow", (25, 25), ("", "")))
    examples = {"Chair": np.full((8, 8, 3), 90, np.uint8)}  # noqa: RUF012

    def __init__(self) -> None:
        self.made: list[Order] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def check(self, order: Order) -> None:
        if order.picture.size == (1, 1):
            raise FewstepError("the picture has no object")

    def __call__(self, order: Order, tell: Callable[[str], None]) -> Made:
        tell("structure flow 1/2")
        while not self.go.wait(0.01):
            tell("structure flow 1/2")
        if self.error is not None:
            raise self.error
        self.made.append(order)
        seconds = {"loading models": 1.5, "structure flow": 0.5 * order.steps[0], "mesh decoder": 0.25}
        return Made(glb(voxel_mesh(CUBE)), seconds, {"faces": 1234}, ["structure: a line"], ["<b>departs</b>"])


class Client:
    """Asks a server that runs in a thread."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = HTTPConnection(*self.server.server_address[:2], timeout=30)  # type: ignore[misc]
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, text, headers)
        response = connection.getresponse()
        return response.status, response.read()

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        status, content = self.raw(method, path, body, **headers)
        return status, json.loads(content)

    def order(self, **changes: Any) -> Any:
        status, found = self("POST", "/jobs", {"example": 0, "choice": 0, "steps": [1, 1], "seed": 42, **changes})
        assert (status == 200) == ("number" in found)
        return found.get("number") or found["error"]

    def until(self, number: int, *states: str) -> Any:
        for _ in range(2000):
            if (found := self("GET", f"/jobs/{number}")[1])["state"] in states:
                return found
            time.sleep(0.01)
        raise AssertionError(found)


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    made = Server(stub, "127.0.0.1", 0, Console(file=io.StringIO()))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Client(made)
    stub.go.set()
    made.shutdown()
    made.close()
    thread.join()


def png(size: int = 4) -> str:
    buffer = io.BytesIO()
    Image.new("RGBA", (size, size), (200, 30, 30, 128)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_page_its_files_and_what_it_is_told(client: Client) -> None:
    for path in ("/", "/app.js", "/app.css", "/viewer.js", "/page.css"):
        status, content = client.raw("GET", path)
        assert (status, len(content) > 500) == (200, True)
    assert not re.search(rb"(src|href)=\"(https?:)?//", client.raw("GET", "/")[1])  # it works without a network
    _, about = client("GET", "/about")
    assert about["stages"] == ["structure", "latents"]
    assert about["choices"][1] == {"label": "slow", "steps": [25, 25], "made_for": ["", ""]}
    assert Image.open(io.BytesIO(client.raw("GET", "/examples/0")[1])).size == (8, 8)
    for path in ("/examples/1", "/nothing", "/../pyproject.toml", "/jobs/1", "/jobs/1/a.glb"):
        assert client("GET", path)[0] == 404


def test_an_order_is_made_and_downloaded(client: Client, stub: Stub) -> None:
    number = client.order(example=None, picture=png(), name="my chair.png", choice=1, steps=[2, 3], seed=7, keep=True)
    state = client.until(number, "done")
    (order,) = stub.made
    assert (order.name, order.choice, order.steps, order.seed, order.background) == ("my chair", 1, (2, 3), 7, "keep")
    assert order.picture.getpixel((0, 0)) == (200, 30, 30, 128)
    assert state["file"] == f"jobs/{number}/my-chair-slow-2-3-seed-7.glb"
    assert state["counts"] == {"faces": 1234}
    assert client.raw("GET", f"/{state['file']}") == (200, glb(voxel_mesh(CUBE)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": [0, 1]}, "steps of structure: got 0; accepted: an integer from 1 to 1000"),
        ({"steps": [1, ""]}, "steps of latents: got ''"),
        ({"steps": [1, 1.5]}, "steps of latents: got 1.5"),
        ({"steps": [1]}, "a number for each of structure, latents"),
        ({"seed": -1}, "seed: got -1; accepted: an integer from 0"),
        ({"seed": None}, "seed: got ''"),
        ({"choice": 2}, "method: got 2"),
        ({"choice": True}, "method: got True"),
        ({"example": 1}, "example: got 1"),
        ({"example": None}, "no picture yet: choose one of the examples, or a file"),
        ({"example": None, "picture": "%"}, "a picture in base64"),
        ({"example": None, "picture": "aGVsbG8=", "name": "notes.txt"}, "image: got 'notes.txt'; accepted: a picture"),
        ({"example": None, "picture": png(1)}, "the picture has no object"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(client: Client, stub: Stub, changes: Any, text: str) -> None:
    assert text in client.order(**changes)
    assert "BytesIO" not in client.order(**changes)
    assert stub.made == []


def test_a_body_that_is_no_order(client: Client) -> None:
    for body in (b"", b"[1]", b"{", b"\xff"):
        assert client("POST", "/jobs", body)[1]["error"].endswith("accepted: a JSON object")
    assert client("POST", "/jobs", b"", **{"Content-Length": str(10**9)})[0] == 413


def test_one_at_a_time_in_order(client: Client, stub: Stub) -> None:
    stub.go.clear()
    numbers = [client.order(seed=seed) for seed in range(3)]
    client.until(numbers[0], "running")
    states = [client("GET", f"/jobs/{number}")[1] for number in numbers]
    assert [(state["state"], state["ahead"]) for state in states] == [("running", 0), ("waiting", 1), ("waiting", 2)]
    assert states[0]["text"] == "structure flow 1/2"
    assert client("DELETE", f"/jobs/{numbers[1]}") == (200, {})
    assert client("GET", f"/jobs/{numbers[1]}")[1]["state"] == "cancelled"
    stub.go.set()
    client.until(numbers[2], "done")
    assert [order.seed for order in stub.made] == [0, 2]


def test_what_runs_can_be_cancelled(client: Client, stub: Stub) -> None:
    stub.go.clear()
    number = client.order()
    client.until(number, "running")
    client("DELETE", f"/jobs/{number}")
    client.until(number, "cancelled")
    assert stub.made == []


def test_a_failure_is_told_and_the_next_one_is_made(
    client: Client, stub: Stub, capfd: pytest.CaptureFixture[str]
) -> None:
    stub.error = FewstepError("the mesh came out without faces")
    assert client.until(client.order(), "failed")["text"] == "the mesh came out without faces"
    assert capfd.readouterr().err == ""
    stub.error = ZeroDivisionError("a bug")
    assert "ZeroDivisionError: a bug" in client.until(client.order(), "failed")["text"]
    assert "Traceback" in capfd.readouterr().err
    stub.error = None
    client.until(client.order(), "done")


def test_the_queue_and_what_is_kept_have_an_end(client: Client, stub: Stub) -> None:
    first = [client.order() for _ in range(KEPT + 2)]
    client.until(first[-1], "done")
    stub.go.clear()
    client.until(client.order(), "running")
    assert client("GET", f"/jobs/{first[0]}")[0] == 404
    assert client("GET", f"/jobs/{first[-1]}")[0] == 200
    waiting = [client.order() for _ in range(MOST_WAITING)]
    assert "objects are waiting already" in client.order()
    for number in waiting:
        client("DELETE", f"/jobs/{number}")


def test_another_site_may_neither_read_nor_order(client: Client, stub: Stub) -> None:
    order = {"example": 0, "choice": 0, "steps": [1, 1], "seed": 42}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert client("POST", "/jobs", order, **headers)[0] == 403
        assert client("GET", "/about", **headers)[0] == 403
        assert client("DELETE", "/jobs/1", **headers)[0] == 404
    own = f"127.0.0.1:{client.server.server_address[1]}"
    assert client("POST", "/jobs", order, Origin=f"http://{own}")[0] == 200


def test_a_port_that_is_taken_and_a_host_of_another_machine(client: Client, stub: Stub) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(FewstepError, match=r"--port: got \d+; accepted: another one, or 0"):
        Server(stub, "127.0.0.1", client.server.server_address[1], console)
    for host in ("192.0.2.1", "no such host", ""):
        with pytest.raises(FewstepError, match=r"--host: got .*an address of this machine"):
            Server(stub, host, 0, console)


def test_ctrl_c_ends_the_page_and_the_work_in_hand(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    stub.go.clear()

    def serve(self: Server, poll_interval: float) -> None:
        self.jobs.add(Order(Image.new("RGBA", (4, 4)), "x", 0, (1, 1), 0, "keep"))
        while not any(job.state == "running" for job in self.jobs._jobs.values()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    opened: list[str] = []
    monkeypatch.setattr(run, "open_page", opened.append)
    run.run(stub, "127.0.0.1", 0, Console(file=told, width=200))
    assert stub.made == []
    assert "jobs" not in {thread.name for thread in threading.enumerate()}
    assert re.search(r"page: http://127.0.0.1:\d+/ \(Ctrl-C ends it\)", told.getvalue())
    assert opened[0].startswith("http://127.0.0.1:")
    assert "x, quick <i>, 1+1 steps, seed 0: cancelled" in told.getvalue()
    assert "stopped" in told.getvalue()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "99999"], "--port: got '99999'; accepted: an integer from 0 to 65535"),
        (["--student", "nothing"], "--student: got 'nothing'"),
        (["--device", "tpu"], "--device: got 'tpu'"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--backbone", "toy"], "'toy' does not offer `fewstep app`"),
    ],
)
def test_bad_options_are_one_message(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["app", "--no-open", *arguments])
    assert text in refusal(code, *capsys.readouterr())


def test_trellis_makes_what_generate_makes_and_loads_once(
    tmp_path: Path, tiny_pipeline: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep_trellis.generate.api import Options, generate
    from fewstep_trellis.generate.page import TrellisMaker
    from fewstep_trellis.pipeline.memory import Shelf
    from pipeline_helpers import picture
    from test_generate import student

    folder = student(tmp_path / "mine", steps=(2, 3))
    make = TrellisMaker(str(tiny_pipeline), [str(folder)], Options(encoder=str(tiny_encoder)))
    assert [(one.steps, one.made_for) for one in make.choices] == [
        ((3, 2), ("the teacher's: 3", "made for 2, 3")),
        ((3, 2), ("the teacher's: 3", "the teacher's: 2")),
    ]
    assert make.choices[1].label == "teacher"
    loads: list[str] = []
    lend = Shelf.lend

    def counted(self: Shelf, name: str, load: Callable[[], Any]) -> Any:
        return lend(self, name, lambda: (loads.append(name), load())[1])

    monkeypatch.setattr(Shelf, "lend", counted)
    shown = Image.open(picture(tmp_path / "disc.png"))
    told: list[str] = []
    made = {}
    for choice in (0, 1, 0):
        order = Order(shown, "disc", choice, (2, 3), 5, "remove")
        make.check(order)
        made[choice] = make(order, told.append)
    assert len(loads) == len(set(loads)) == 6  # encoder, two decoders, structure flow, latent flow and student, once
    assert "structure flow 2/2" in told
    assert made[0].glb != made[1].glb
    assert made[0].counts["faces"] > 0
    assert "latents: student mdt-vd" in made[0].how[1]
    for choice, chosen in ((0, str(folder)), (1, "none")):
        options = {"teacher": str(tiny_pipeline), "student": chosen, "encoder": str(tiny_encoder)}
        same: Any = generate(shown, steps=(2, 3), seed=5, **options)
        assert same.save(tmp_path / "same.glb").read_bytes() == made[choice].glb
    with pytest.raises(FewstepError, match="transparent everywhere"):
        make.check(Order(Image.new("RGBA", (9, 9)), "clear", 0, (1, 1), 0, "remove"))


DRIVE = """
  const find = (id) => document.getElementById(id);
  const trouble = async () => {
    await until(() => !find("trouble").hidden);
    const text = find("trouble").textContent;
    find("trouble").hidden = true;
    return text;
  };
  const go = () => find("form").requestSubmit();
  const said = {};
  await until(() => document.querySelector("#examples button"));
  go();
  said.nothing = await trouble();
  const files = new DataTransfer();
  files.items.add(new File(["no picture"], "notes.txt"));
  find("file").files = files.files;
  find("file").dispatchEvent(new Event("change"));
  await until(() => find("shown").src.startsWith("data:"));
  go();
  said.wrong = await trouble();
  document.querySelector("#examples button").click();
  const steps = document.querySelector(".steps input");
  steps.value = "0";
  go();
  said.zero = await trouble();
  steps.value = "1";
  find("more").click();
  go();
  await until(() => {
    const seen = [...document.querySelectorAll("#panes canvas")];
    return seen.length === 2 && seen.every((canvas) => canvas.width > 99 && dark(canvas));
  });
  said.times = [...document.querySelectorAll(".time")]
    .map((one) => `${one.textContent}|${one.parentNode.querySelector(".facts").textContent}`);
  said.titles = [...document.querySelectorAll("#panes h2")].map((one) => one.textContent);
  said.files = [...document.querySelectorAll("a.download")].map((one) => one.download);
  said.scroll = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const boxes = [...document.querySelectorAll("form, #results, #panes figure, .method input, #go")]
    .map((one) => one.getBoundingClientRect());
  said.narrow = boxes.every((box) => box.width > 60 && box.left >= 0 && box.right <= innerWidth);
  if (innerWidth < 600) await until(() => scrollY > 0); // to what was made, which is below the form
  said.scrolled = scrollY;
  scrollTo({top: 0, behavior: "instant"}); // a screenshot is of the beginning
  return said;
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1300, 500])
def test_a_browser_orders_shows_and_refuses(client: Client, tmp_path: Path, width: int) -> None:
    with Browser(client.server.url, tmp_path / "profile", (width, 1000)) as browser:
        said = browser.run(DRIVE)
        shot = np.asarray(browser.picture().convert("L"))
    assert browser.errors == []
    assert "no picture yet" in said["nothing"]
    assert "notes.txt" in said["wrong"]
    assert "steps of structure: got 0; accepted: an integer from 1" in said["zero"]
    assert said["titles"] == ["quick <i>, 1 + 1 step each", "slow, 25 + 25 steps"]
    assert said["times"] == [
        "0.50 s in the flows|0.75 s in all, and 1.50 s to load models",
        "12.5 s in the flows|12.8 s in all, and 1.50 s to load models",
    ]
    assert said["files"] == ["Chair-quick-i-1-1-seed-42.glb", "Chair-slow-25-25-seed-42.glb"]
    assert (said["scroll"], said["narrow"]) == (0, True)
    assert (said["scrolled"] > 0) == (width == 500)
    assert shot.mean() > 200  # light, and not empty
    assert shot.std() > 10
