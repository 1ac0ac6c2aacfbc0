"""Where a run's numbers go: always ``metrics.jsonl``; TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import FewstepError
from fewstep.files import sync, write_file

METRICS = "metrics.jsonl"
Row = Mapping[str, Any]


class Tracker(Protocol):
    """A plugin registers a class that is constructed as ``cls(folder, config, step)``.

    ``folder``: the run's. ``config``: as resolved. ``step``: iterations done before, so that rows beyond it (of a
    killed run) are dropped.
    """

    def log(self, row: Row) -> None:
        """Take a row: step, loss, total, grad_norm, lr, seconds, evaluations; nested tables by name."""

    def flush(self) -> None:
        """Have everything on the disk; called before a checkpoint is written."""

    def close(self) -> None:
        """The run ended."""


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row by slashed names: ``loss/vm``, ``evaluations/teacher/forward``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield prefix + key, value


class JsonLines:
    """``metrics.jsonl``, a JSON object a line. Rows beyond ``step`` and a half-written last line are dropped."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        del config
        self.path = folder / METRICS
        if self.path.exists():
            write_file(self.path, "".join(line + "\n" for line in _until(self.path, step)))
        self.file = self.path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            raise FewstepError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def flush(self) -> None:
        sync(self.path)

    def close(self) -> None:
        self.file.close()


def _until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("step", step + 1) <= step:
            yield line


class TensorBoard:
    """Event files under ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        _require("tensorboard", "tensorboard")
        module = importlib.import_module("torch.utils.tensorboard")
        self.writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.writer.add_text("config", "    " + json.dumps(config, indent=1).replace("\n", "\n    "), step)

    def log(self, row: Row) -> None:
        for name, value in flat(row):
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run; project and mode come from its own environment variables. Resumes the run by folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        module = _require("wandb", "wandb")
        name, again = folder.resolve().name, "allow" if step else None
        self.run = module.init(
            project="fewstep", name=name, id=name, dir=str(folder), config=dict(config), resume=again
        )

    def log(self, row: Row) -> None:
        self.run.log({name: value for name, value in flat(row) if name != "step"}, step=row["step"])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FewstepError(f"tracker {module!r} needs a package: pip install {package} ({error})") from None
