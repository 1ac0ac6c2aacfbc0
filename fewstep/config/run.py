"""From the words of a command line to the configs of runs: defaults, preset, file and overrides, checked.

Imports torch late.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.config import presets
from fewstep.config.base import flatten, merge, parse_override, read_toml, validate
from fewstep.config.needs import check_needs
from fewstep.config.resolved import TABLES, Resolved, RunConfig, model_of, source_of, versions
from fewstep.config.stages import check_named, chosen, keys_of, preset_of
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry

__all__ = [
    "Resolved",
    "RunConfig",
    "data_of",
    "model_of",
    "pick",
    "resolve",
    "resolve_stages",
    "versions",
]

Layer = tuple[str, dict[str, Any]]  # (source, nested values)


def pick(method: str, backbone: str, dataset: str | None = None) -> tuple[Entry, Entry, Entry]:
    """The registered method, backbone and data set (the backbone's own unless named).

    Raises:
        FewstepError: for a name that is not registered, with the nearest.
    """
    objective, network = registry().get("objective", method), registry().get("backbone", backbone)
    return objective, network, data_of(network, dataset)


def data_of(backbone: Entry, dataset: str | None = None) -> Entry:
    """The data set: the one that was named, or the backbone's own.

    Raises:
        FewstepError: for a name that is not registered, or a backbone without a data set of its own.
    """
    name = dataset or getattr(backbone.load(), "dataset", None)
    if name is None:
        raise FewstepError(f"backbone {backbone.name!r} names no data set of its own; accepted: --dataset with one")
    return registry().get("dataset", name)


def resolve(
    method: str,
    backbone: str,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    dataset: str | None = None,
) -> Resolved:
    """Assemble the config of a run on this very backbone; see ``resolve_stages``."""
    (found,) = resolve_stages(method, backbone, None, preset, config_file, overrides, dataset).values()
    return found


def resolve_stages(
    method: str,
    backbone: str,
    stage: str | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    dataset: str | None = None,
) -> dict[str, Resolved]:
    """Assemble the configs of the runs of ``--stage`` by stage, in order; without a stage one run, on ``backbone``.

    Later wins: defaults, preset, ``config_file``, ``overrides`` (KEY=VALUE).

    Raises:
        FewstepError: for unknown names and keys and for values out of bounds, with where they came from.
    """
    named = registry().get("backbone", backbone)
    running = chosen(named, stage)
    given: list[Layer] = [] if config_file is None else [(str(config_file), read_toml(Path(config_file)))]
    for text in overrides:
        given.append(("command line", parse_override(text)))
        check_named(given[-1][1], running, named.load().stages)
    return {name: _resolve(method, network.name, preset, given, dataset) for name, network in running.items()}


def _resolve(method: str, backbone: str, preset: str | None, given: Sequence[Layer], dataset: str | None) -> Resolved:
    objective, network = registry().get("objective", method), registry().get("backbone", backbone)
    own = network.load()
    check_needs(objective.load(), own, method=objective.name, backbone=network.name)
    preset = preset_of(objective, network, preset)
    layers = [(found.source, found.read()) for found in presets.find(objective, network, preset)] + list(given)
    layers = [(source, keys_of(values, own.stage, own.stages)) for source, values in layers]
    data = data_of(network, dataset or presets.data_set(layers))
    layers = [(source, {k: v for k, v in values.items() if k != presets.DATASET}) for source, values in layers]
    sources: dict[str, str] = {}
    for source, values in layers:
        sources.update({key: source for key, _ in flatten(values)})
    merged = merge({table: {} for table in TABLES}, *(values for _, values in layers))
    try:
        config = validate(model_of(objective, network, data), merged)
    except FewstepError as error:
        raise FewstepError("\n".join(_located(line, sources) for line in str(error).splitlines())) from None
    return Resolved(objective, network, data, config, sources, preset)


def _located(line: str, sources: dict[str, str]) -> str:
    """An error's line with the source of the key it is about, where that is not the command line."""
    key = line.removeprefix("unknown key ").partition(":")[0].strip("'")
    source = source_of(sources, key)
    return line if source in ("default", "command line") else f"{line} (from {source})"
