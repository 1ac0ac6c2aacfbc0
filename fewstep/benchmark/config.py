"""The config of a bench: its keys, and how preset and given values are combined for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model

from fewstep.config import presets
from fewstep.config.base import Strict, merge, validate
from fewstep.config.resolve import data_of
from fewstep.config.stages import check_named, keys_of
from fewstep.config.teacher import taught
from fewstep.errors import FewstepError, unknown
from fewstep.plugins.registry import Entry


def _once(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("each number once")
    return values


class BenchConfig(Strict):
    """Keys of a bench. ``configure`` gives ``backbone`` and ``data`` the config classes of what is measured."""

    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_once)] = Field(
        (1, 2, 4), min_length=1, description="step counts"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_once)] = Field(
        (0, 1, 2), min_length=1, description="seeds of the noise; replicate number r of a method uses the r-th of them"
    )
    samplers: tuple[str, ...] = Field(
        (), description="samplers that each student is measured with besides its own; NAME:NOISE sets a share of noise"
    )
    limit: int | None = Field(None, ge=2, description="largest number of held-out samples; none: all")
    against: str = Field("", description="label of the method that the others are compared with; by default the first")
    resamples: int = Field(500, ge=2, description="resamples of the held-out objects, for the intervals")
    teacher_steps: int = Field(25, ge=1, description="steps of the teacher that students are compared with")
    device: str = Field("auto", description="torch device; auto: CUDA if available, else the CPU")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none: torch's own choice")
    columns: int = Field(8, ge=1, description="objects on the contact sheet")
    backbone: Any = None
    data: Any = None


def configure(
    networks: Mapping[str, Entry], dataset: str | None, preset: str | None, values: Mapping[str, Any]
) -> dict[str, BenchConfig]:
    """A config for each stage. Later values win: defaults, the preset ``presets/bench/<preset>.toml``, ``values``.

    Args:
        networks: the registered backbone of each stage.
        values: nested keys; those below a stage's name (``slat.backbone``) are for that stage alone.

    Raises:
        FewstepError: for unknown keys or values, a key below one stage that belongs to the whole bench, or a data set
            that is not available or cannot be measured.
    """
    first = next(iter(networks.values()))
    known = first.load().stages
    check_named(values, networks, known)
    merged = merge(*[file.read() for file in presets.find_for("bench", first, preset)], values)
    for name in networks:
        for key in merged.get(name, {}):
            if key not in ("backbone", "data"):
                raise unknown(f"key below {name}", key, ("backbone", "data"))
    configs: dict[str, BenchConfig] = {}
    for name, network in networks.items():
        own, data = network.load(), data_of(network, dataset)
        if not own.measures(data.load()):
            raise unmeasured(data.load(), network)
        tables = {"backbone": network.load_config(), "data": data.load_config()}
        fields: dict[str, Any] = {table: (config, Field(default_factory=config)) for table, config in tables.items()}
        typed = create_model("Bench", __base__=BenchConfig, **fields)
        keys = keys_of(merged, name, known)
        configs[name] = validate(typed, merge(keys, taught(network, [keys], [keys])))
        data.load().check_config(configs[name].data)
    return configs


def unmeasured(dataset: type, network: Entry) -> FewstepError:
    """The error for a data set that the backbone has no suite for."""
    accepted = f"--dataset {network.load().dataset}, or another with held-out objects that {network.name} can measure"
    return FewstepError(f"fewstep bench: {dataset.__name__} has no held-out objects; accepted: {accepted}")
