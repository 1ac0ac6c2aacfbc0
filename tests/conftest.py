"""What several test files use: the command line as a user runs it, and plugins that are not installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.ops.table import forget

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, which reads it where a kernel is declared


class Patch(pytest.MonkeyPatch):  # type: ignore[misc]  # final for type checkers alone
    """pytest's own, which tells the op table of a change: FEWSTEP_OPS is read once."""

    def setenv(self, name: str, value: str, prepend: str | None = None) -> None:
        super().setenv(name, value, prepend)
        forget()

    def delenv(self, name: str, raising: bool = True) -> None:
        super().delenv(name, raising)
        forget()

    def undo(self) -> None:
        super().undo()
        forget()


@pytest.fixture
def monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    """As pytest's, see ``Patch``."""
    with Patch.context() as patch:
        yield patch


@pytest.fixture
def triton_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in Triton where there is one for a call; interpreted ones serve CPU tensors only if asked for so."""
    pytest.importorskip("triton")
    monkeypatch.setenv("FEWSTEP_OPS", "triton")


@dataclass
class Cli:
    """``fewstep ...`` in a process of its own, in an empty folder, with further plugins on the path."""

    folder: Path
    paths: list[Path] = field(default_factory=list)

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, self.paths), *inherited])
        command = [sys.executable, "-m", "fewstep", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=self.folder, env=environment, check=False
        )

    def works(self, *arguments: str | Path) -> str:
        """Standard output of a command that must succeed."""
        done = self(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refuses(self, *arguments: str | Path) -> str:
        """The one message of a command that must be refused as bad input."""
        done = self(*arguments)
        return refusal(done.returncode, done.stdout, done.stderr)


def refusal(code: int, out: str, err: str) -> str:
    """The message on stderr, after checking that bad input was refused as it should be."""
    assert code == 2, f"exit code {code}\n{out}\n{err}"
    assert "Traceback" not in out + err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line, run in an empty folder."""
    (tmp_path / "cwd").mkdir()
    return Cli(tmp_path / "cwd")


def fake_plugin(site: Path, name: str, files: dict[str, str], version: str = "1.0") -> Path:
    """A distribution with one plugin, as if pip had put it into ``site``; the first file is the plugin's module."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    module = next(iter(files)).removesuffix(".py").replace("/", ".")
    (info / "entry_points.txt").write_text(
        f"[fewstep]\n{name.partition('-')[2] or name} = {module}\n", encoding="utf-8"
    )
    return site


def contents(folder: Path) -> str:
    """A hash over all names and bytes of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


Plugin = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An empty folder for distributions, to be put on ``cli.paths``."""
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture(autouse=True, scope="module")
def _registry_as_installed() -> Iterator[None]:
    """What a test file registers for itself is gone before the next one."""
    from fewstep.plugins.registry import registry

    known = registry()
    before = {key: list(found) for key, found in known._entries.items()}
    yield
    known._entries.clear()
    known._entries.update(before)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random pipeline in the official layout (``pipeline_helpers``). Do not write into it."""
    from pipeline_helpers import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image encoder for ``tiny_pipeline``."""
    from pipeline_helpers import write_encoder

    return write_encoder(tmp_path_factory.mktemp("encoder") / "dino")


@pytest.fixture
def go(
    tmp_path: Path,
    tiny_pipeline: Path,
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Any]:
    """``fewstep generate ...`` on the tiny pipeline, in an empty folder of its own."""
    from pipeline_helpers import Done

    from fewstep.cli import main

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "200")

    def call(
        *arguments: str | Path,
        teacher: str | Path = tiny_pipeline,
        encoder: str | Path = tiny_encoder,
        command: str = "generate",
    ) -> Done:
        more = ["--image-encoder", str(encoder)] if command == "generate" else []
        code = main([command, *map(str, arguments), "--teacher", str(teacher), *more])
        return Done(code, *capsys.readouterr())

    return call
