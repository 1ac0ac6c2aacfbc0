"""What is printed arrives, whatever the terminal's encoding, its width, or whether there is one."""

from __future__ import annotations

import codecs
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rich.console
from rich.table import Table

import fewstep
from fewstep.cli import main
from fewstep.console import WIDE, Console, command, lookalike, number_of, say, spinner

QUICK = ("train.steps=2", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "train.threads=1")
HARD = "é … — “x” ± │ ┏━┓ 中 \udcff ⠋ 🙂 \u0301"


Replace = Callable[[str, bool], "Stream"]


class Stream(io.TextIOWrapper):
    """A strict standard stream of some encoding, a terminal or not."""

    def __init__(self, encoding: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Replace:
    """Put strict streams in place of the standard ones; what comes is the standard output."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def replace(encoding: str, terminal: bool) -> Stream:
        monkeypatch.setattr(sys, "stdout", out := Stream(encoding, terminal))
        monkeypatch.setattr(sys, "stderr", Stream(encoding, terminal))
        return out

    return replace


ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16")
BOTH = [(encoding, terminal) for encoding in ENCODINGS for terminal in (False, True)]


@pytest.mark.parametrize(("encoding", "terminal"), BOTH)
def test_nothing_that_is_printed_raises(strict: Replace, encoding: str, terminal: bool) -> None:
    out = strict(encoding, terminal)
    for console in (Console(), Console(stderr=True)):
        table = Table("key", HARD, title=HARD)
        table.add_row(HARD, "[/]")
        console.print(table)
        say(console, f"{HARD} [/bold]")
        with spinner(console, f"{HARD} [/]"):
            say(console, "within")
    assert "within" in out.text()


def test_lookalikes() -> None:
    shown = "".join(map(lookalike, "é…—“x”±│┏━┓½µe\u0301中\udcff"))
    assert shown == 'e...-"x"+-|+-+1/2ue\\u4e2d\\udcff'


@pytest.mark.parametrize(("encoding", "terminal"), [("ascii", False), ("cp1252", True)])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("distill", "--help"),
        ("generate", "--help"),
        ("plugins",),
        ("distill", "-m", "mdt-vd", "-b", "toy", "--dry-run"),
        ("distill", "-m", "mdt-vd", "-b", "trellis", "--help-config"),
        ("sample", "no-such-é\udcff"),
        ("distill", "-m", "mdt-vd", "-b", "toy", "--config", "é…\udcff.toml"),
        ("generate", "é\udcff.png"),
        ("nô-such-command",),
    ],
)
def test_every_command_prints_on_a_strict_stream(
    strict: Replace, encoding: str, terminal: bool, arguments: tuple[str, ...]
) -> None:
    out = strict(encoding, terminal)
    assert main(list(arguments)) in (0, 2)
    errors = sys.stderr
    assert isinstance(errors, Stream)
    assert out.text() + errors.text()


@pytest.mark.parametrize(("encoding", "terminal"), BOTH[:4])
def test_the_python_api_prints_on_a_strict_stream(
    strict: Replace, encoding: str, terminal: bool, tmp_path: Path
) -> None:
    out = strict(encoding, terminal)
    run = fewstep.distill("mdt-vm", "toy", overrides=QUICK, out=tmp_path / "é\u4e2d")
    print(run.folder.name.encode("ascii", "replace"))
    assert "step" in out.text()
    assert out.errors == "strict", "the caller's streams stay as they are"


def test_a_pipe_gets_tables_of_their_full_width(strict: Replace) -> None:
    out = strict("utf-8", False)
    assert main(["distill", "-m", "mdt-vd", "-b", "toy", "--help-config"]) == 0
    assert "objective.d_norm_constant" in out.text()
    assert "…" not in out.text()
    assert len({len(line) for line in out.text().splitlines()[1:]}) == 1
    assert Console().width == WIDE


@pytest.mark.parametrize("columns", [20, 80])
def test_a_terminal_keeps_its_width(strict: Replace, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = strict("utf-8", True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["distill", "-m", "mdt-vd", "-b", "toy", "--dry-run"]) == 0
    table = [line for line in out.text().splitlines() if "│" in line]
    assert {len(line) for line in table if "\x1b" not in line} <= {columns, *range(columns)}


def test_commands_are_quoted() -> None:
    assert command("fewstep", "sample", Path("my runs/it's")) == "fewstep sample 'my runs/it'\"'\"'s'"


def test_numbers_have_their_plural() -> None:
    assert [number_of(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams(closed: str) -> None:
    for words, code in (("--version", 0), ("no-such-command", 2)):
        done = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -m fewstep {words} {closed}'], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_message() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fewstep", "samplers"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


def test_the_decoder_has_no_use_for_it() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "fewstep.lookalikes")
    assert codecs.lookup_error("fewstep.lookalikes")


def test_our_console_is_a_rich_one() -> None:
    assert isinstance(Console(), rich.console.Console)
    assert os.environ.get("COLUMNS") != "160"


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("pipe", ["| true", "2>&1 | true"])
def test_work_goes_on_when_nobody_reads_any_more(tmp_path: Path, pipe: str) -> None:
    keys = "train.steps=6 train.batch_size=8 backbone.pretrain=2 backbone.width=8 train.threads=1 train.log_every=1"
    run = command(sys.executable, "-m", "fewstep", "distill", "-m", "mdt-vm", "-b", "toy", "--out", "run")
    script = f"({run} {keys}; echo $? > code) {pipe}"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=True, timeout=120)
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "run/student/model.safetensors").is_file()
