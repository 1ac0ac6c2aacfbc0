"""``fewstep bench``: methods x steps x seeds against the teacher and the undistilled network."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model
from typer import Argument, Option

from fewstep.cli.distill import STAGE, needed
from fewstep.cli.lists import integers, names, whole
from fewstep.cli.students import choose, load
from fewstep.config import presets
from fewstep.config.base import Strict, merge, parse_override, validate
from fewstep.config.run import data_of
from fewstep.config.stages import check_named, chosen, keys_of
from fewstep.errors import unknown
from fewstep.plugins.registry import Entry, registry

if TYPE_CHECKING:
    from fewstep.bench.entrants import Stage
    from fewstep.cli.students import Student

KEYS = (
    "Config: backbone.*, data.*, steps, seeds, limit, teacher_steps, device, threads, columns; "
    "of one stage: slat.backbone.*, slat.data.*."
)


class BenchConfig(Strict):
    """Keys of a bench; ``backbone`` and ``data`` get the classes of what is measured."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), description="step counts")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), description="seeds of the noise")
    limit: int | None = Field(None, ge=2, description="only so many held-out samples")
    teacher_steps: int = Field(25, ge=1, description="steps of the teacher that all is measured against")
    device: str = Field("auto", description="torch device; auto: CUDA where there is one, else the CPU")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; none: torch's own choice")
    columns: int = Field(8, ge=1, description="objects on the contact sheet")
    backbone: Any = None
    data: Any = None


def bench(
    overrides: Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help=KEYS)] = None,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="The network that is measured.")] = None,
    stage: Annotated[str | None, STAGE] = None,
    dataset: Annotated[str | None, Option("--dataset", "-d", help="Data set; by default the backbone's own.")] = None,
    methods: Annotated[str | None, Option(help="Students of these methods that ship with the backbone: a,b.")] = None,
    student: Annotated[list[str] | None, Option(metavar="[LABEL=]PATH", help="A student's folder; repeatable.")] = None,
    preset: Annotated[str | None, Option("--preset", "-p", help="Named settings that a plugin ships.")] = None,
    steps: Annotated[str | None, Option(help="Step counts; by default 1,2,4.")] = None,
    seeds: Annotated[str | None, Option(help="Seeds of the noise, for the intervals; by default 0,1,2.")] = None,
    limit: Annotated[int | None, whole("--limit", "Only so many held-out samples.", 2)] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the report; must not exist.")] = None,
    compare: Annotated[Path | None, Option(help="rows.csv of an earlier bench: what moved.")] = None,
) -> None:
    """Measure students: quality and time by steps.

    The teacher and the undistilled network are always measured beside them. With --stage both, one stage samples on
    what the one before it decoded, all in as many steps, and a student is a folder with one of each stage.
    """
    named = registry().get("backbone", needed("--backbone", "backbone", backbone))
    flags: dict[str, Any] = {
        "steps": integers("--steps", steps, 1),
        "seeds": integers("--seeds", seeds, 0),
        "limit": limit,
    }
    running, wanted = chosen(named, stage), names("--methods", methods)
    configs = configure(running, dataset, preset, overrides or [], flags)
    folders = choose(running, wanted, student or [])

    import torch

    from fewstep.bench import run_bench
    from fewstep.engine.device import pick_device

    config = next(iter(configs.values()))
    device = pick_device(config.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    first, *then = stages(running, configs, dataset, load(folders, running))
    run_bench(
        f"{named.name} {'+'.join(running)}" if then else next(iter(running.values())).name,
        first.teacher,
        first.suite,
        first.students,
        out=out or Path("runs") / f"bench-{named.name}{f'-{stage}' if stage else ''}",
        steps=config.steps,
        seeds=config.seeds,
        limit=config.limit,
        compare=compare,
        teacher_steps=config.teacher_steps,
        rescale_t=first.rescale_t,
        device=device,
        columns=config.columns,
        command=sys.argv,
        stage=first.name if then else "",
        then=then,
    )


def configure(
    running: Mapping[str, Entry],
    dataset: str | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    flags: Any = MappingProxyType({}),
) -> dict[str, Any]:
    """A ``BenchConfig`` for each stage, its tables typed. Later wins: defaults, preset, KEY=VALUE, options (``flags``).

    Raises:
        FewstepError: for unknown keys, and for one of a stage alone that is of the whole bench.
    """
    first = next(iter(running.values()))
    known = first.load().stages
    layers = [parse_override(text) for text in overrides]
    for values in layers:
        check_named(values, running, known)
    shipped = [found.read() for found in presets.find_for("bench", first, preset)]
    merged = merge(*shipped, *layers, {name: value for name, value in flags.items() if value is not None})
    for name in running:
        for key in merged.get(name, {}):
            if key not in ("backbone", "data"):
                raise unknown(f"key below {name}", key, ("backbone", "data"))
    return {
        name: validate(_model(network, data_of(network, dataset)), keys_of(merged, name, known))
        for name, network in running.items()
    }


def _model(network: Entry, data: Entry) -> type[BenchConfig]:
    tables = {"backbone": network.load_config(), "data": data.load_config()}
    fields: dict[str, Any] = {table: (config, Field(default_factory=config)) for table, config in tables.items()}
    return create_model("Bench", __base__=BenchConfig, **fields)


def stages(
    running: Mapping[str, Entry], configs: Mapping[str, Any], dataset: str | None, students: Mapping[str, list[Student]]
) -> list[Stage]:
    """What is measured, by stage in order."""
    from fewstep.bench.entrants import Stage

    found = []
    for name, network in running.items():
        config, own = configs[name], network.load()
        teacher = own.teacher(config.backbone)
        data = data_of(network, dataset).load()(config.data, teacher.backbone)
        warp = getattr(config.backbone, "rescale_t", 1.0)
        found.append(Stage(name, teacher, own.suite(config.backbone, data), students[name], warp))
    return found
