"""A run: its config from defaults, preset, file and command line, and everything put together. Imports torch late."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, create_model
from rich.console import Console

import fewstep
from fewstep.config import Strict, merge, parse_override, read_toml, validate
from fewstep.engine import presets
from fewstep.engine.config import TrainConfig
from fewstep.engine.folder import flatten
from fewstep.engine.needs import check_needs
from fewstep.errors import FewstepError
from fewstep.registry import Entry, registry

TABLES = ("objective", "backbone", "data", "train")
Layer = tuple[str, dict[str, Any]]  # (source, nested values)


class RunConfig(Strict):
    """The config of a run; ``model_of`` gives each table the class of the chosen objective, backbone and data set."""

    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of every draw: data, noise, times, dropout")
    objective: Any = None
    backbone: Any = None
    data: Any = None
    train: TrainConfig = Field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Resolved:
    """A run that could start: what was chosen, its config, and where every key came from."""

    method: Entry
    backbone: Entry
    dataset: Entry
    config: Any  # a RunConfig with its tables typed
    sources: dict[str, str]
    preset: str | None = None

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value, source) of every key."""
        for key, value in flatten(self.tables()):
            yield key, value, _source(self.sources, key)

    def tables(self) -> dict[str, Any]:
        """The config as JSON values."""
        values: dict[str, Any] = self.config.model_dump(mode="json")
        return values

    def identity(self) -> dict[str, Any]:
        """The config with the names of what it configures: what a resumed run is held against."""
        names = {"method": self.method.name, "backbone.name": self.backbone.name, "data.name": self.dataset.name}
        return {**names, **self.tables()}

    @property
    def folder(self) -> Path:
        """Where the run goes unless told otherwise."""
        return Path("runs") / f"{self.method.name}-{self.backbone.name}"

    def versions(self) -> dict[str, str]:
        """Versions of Python, fewstep, torch, numpy and the plugins' distributions."""
        return versions()


def versions() -> dict[str, str]:
    """Versions of Python, fewstep, torch, numpy and the plugins' distributions."""
    found = {p.distribution: p.version for p in registry().plugins if not p.error}
    found |= {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"python": platform.python_version(), **found, "fewstep": fewstep.__version__}


def model_of(method: Entry, backbone: Entry, dataset: Entry) -> type[RunConfig]:
    """The config class of a run with these three."""
    fields: dict[str, Any] = {}
    for table, entry in zip(TABLES, (method, backbone, dataset), strict=False):
        config = entry.load_config()
        fields[table] = (config, Field(default_factory=config))
    return create_model("Run", __base__=RunConfig, **fields)


def pick(method: str, backbone: str, dataset: str | None = None) -> tuple[Entry, Entry, Entry]:
    """The registered method, backbone and data set (the backbone's own unless named).

    Raises:
        FewstepError: for a name that is not registered, with the nearest.
    """
    chosen, network = registry().get("objective", method), registry().get("backbone", backbone)
    name = dataset or getattr(network.load(), "dataset", None)
    if name is None:
        raise FewstepError(f"backbone {network.name!r} names no data set of its own; accepted: --dataset with one")
    return chosen, network, registry().get("dataset", name)


def resolve(
    method: str,
    backbone: str,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    dataset: str | None = None,
) -> Resolved:
    """Assemble a run's config. Later wins: defaults, preset, ``config_file``, ``overrides`` (KEY=VALUE).

    Raises:
        FewstepError: for unknown names and keys and for values out of bounds, with where they came from.
    """
    chosen, network, data = pick(method, backbone, dataset)
    check_needs(chosen.load(), network.load(), method=chosen.name, backbone=network.name)
    layers: list[Layer] = [(found.source, found.read()) for found in presets.find(chosen, network, preset)]
    if config_file is not None:
        layers.append((str(config_file), read_toml(Path(config_file))))
    layers += [("command line", parse_override(text)) for text in overrides]
    sources: dict[str, str] = {}
    for source, values in layers:
        sources.update({key: source for key, _ in flatten(values)})
    merged = merge({table: {} for table in TABLES}, *(values for _, values in layers))
    try:
        config = validate(model_of(chosen, network, data), merged)
    except FewstepError as error:
        raise FewstepError("\n".join(_located(line, sources) for line in str(error).splitlines())) from None
    return Resolved(chosen, network, data, config, sources, preset)


def _located(line: str, sources: dict[str, str]) -> str:
    """An error's line with the source of the key it is about, where that is not the command line."""
    key = line.removeprefix("unknown key ").partition(":")[0].strip("'")
    source = _source(sources, key)
    return line if source in ("default", "command line") else f"{line} (from {source})"


def _source(sources: dict[str, str], key: str) -> str:
    """A key's source, or that of the table it was given with."""
    while key:
        if key in sources:
            return sources[key]
        key = key.rpartition(".")[0]
    return "default"


def start(
    resolved: Resolved,
    out: Path | None,
    resume: bool,
    console: Console,
    *,
    trackers: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Path:
    """Distil, or go on where a killed run stopped, and export the student into ``student/`` of the run's folder.

    Args:
        out: the run's folder; None: ``runs/<method>-<backbone>``.
        trackers: registered trackers beside ``metrics.jsonl``.
        command: the command line, for the record.

    Raises:
        FewstepError: for anything a user can put right.
    """
    from fewstep.engine.session import run

    return run(resolved, out or resolved.folder, resume, console, trackers, command)
