"""A run that is ready to start: what was chosen, its config, and the source of every key."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

import fewstep
from fewstep.config.base import Strict, flatten
from fewstep.config.parallel import ParallelConfig
from fewstep.config.train import LoRAConfig, TrainConfig
from fewstep.plugins.registry import Entry, registry

TABLES = ("objective", "backbone", "data", "train", "parallel")


class RunConfig(Strict):
    """The config of a run; ``model_of`` gives each table the class of the chosen objective, backbone and data set."""

    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of every draw: data, noise, times, dropout")
    objective: Any = None
    backbone: Any = None
    data: Any = None
    train: TrainConfig = Field(default_factory=TrainConfig)
    lora: LoRAConfig = Field(default_factory=LoRAConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class Resolved:
    """A run that is ready to start: what was chosen, its config, and the source of every key."""

    method: Entry
    backbone: Entry
    dataset: Entry
    config: Any  # a RunConfig with its tables typed
    sources: dict[str, str]
    preset: str | None = None

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value, source) of every key."""
        for key, value in flatten(self.tables()):
            yield key, value, source_of(self.sources, key)

    def tables(self) -> dict[str, Any]:
        """The config as JSON values."""
        values: dict[str, Any] = self.config.model_dump(mode="json")
        return values

    def identity(self) -> dict[str, Any]:
        """The config with the names of what it configures, which a resumed run is compared with."""
        names = {"method": self.method.name, "backbone.name": self.backbone.name, "data.name": self.dataset.name}
        return {**names, **self.tables()}

    @property
    def folder(self) -> Path:
        """The run's folder unless another is given."""
        return Path("runs") / f"{self.method.name}-{self.backbone.name}"


def versions() -> dict[str, str]:
    """Versions of Python, fewstep, torch, numpy and the plugins' distributions."""
    installed = {p.distribution: p.version for p in registry().plugins if not p.error}
    installed |= {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"python": platform.python_version(), **installed, "fewstep": fewstep.__version__}


def model_of(method: Entry, backbone: Entry, dataset: Entry) -> type[RunConfig]:
    """The config class of a run with these three."""
    fields: dict[str, Any] = {}
    for table, entry in zip(TABLES, (method, backbone, dataset), strict=False):
        config = entry.load_config()
        fields[table] = (config, Field(default_factory=config))
    return create_model("Run", __base__=RunConfig, **fields)


def source_of(sources: dict[str, str], key: str) -> str:
    """The source of a key, or of the table that it was given in."""
    while key:
        if key in sources:
            return sources[key]
        key = key.rpartition(".")[0]
    return "default"
