"""TensorBoard and Weights & Biases as trackers of a run."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.engine.trackers import Row
from fewstep.errors import need
from fewstep.files import write_file


class TensorBoard:
    """Event files under ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        need("tensorboard")
        module = importlib.import_module("torch.utils.tensorboard")
        self.writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.writer.add_text("config", "    " + json.dumps(config, indent=1).replace("\n", "\n    "), step)

    def log(self, row: Row) -> None:
        for name, value in flat(row):
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        with need("PIL.Image").open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run, named after the last two parts of the folder. WANDB_MODE and its other variables apply.

    The file ``wandb-id`` in the folder holds the run's id, so that a resumed run continues the same one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        module = need("wandb")
        file = folder / "wandb-id"
        known = file.is_file()
        if not known:
            write_file(file, uuid.uuid4().hex)
        self.run = module.init(
            project="fewstep",
            name="/".join(folder.resolve().parts[-2:]),
            id=file.read_text(encoding="utf-8").strip(),
            dir=str(folder),
            config=dict(config),
            resume="allow" if known else None,
        )

    def log(self, row: Row) -> None:
        self.run.log({name: value for name, value in flat(row) if name != "step"}, step=row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: need("wandb").Image(str(path))}, step=step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested row by slash-separated names: ``loss/vm``, ``evaluations/teacher/forward``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield prefix + key, value
