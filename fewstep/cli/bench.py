"""``fewstep bench``: methods x steps x seeds against the teacher and the undistilled network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model
from typer import Argument, Option

from fewstep.cli.distill import needed
from fewstep.cli.lists import integers, names, whole
from fewstep.config import Strict, merge, parse_override, validate
from fewstep.engine import presets
from fewstep.errors import FewstepError
from fewstep.registry import Entry, registry

if TYPE_CHECKING:
    from fewstep.backbone import Backbone
    from fewstep.checkpoint import StudentInfo

KEYS = "Config: backbone.*, data.*, steps, seeds, limit, teacher_steps, device, threads, columns."
Chosen = tuple[str | None, Path]  # label, folder


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

    The teacher and the undistilled network are always measured beside them.
    """
    backbone = needed("--backbone", "backbone", backbone)
    flags: dict[str, Any] = {
        "steps": integers("--steps", steps, 1),
        "seeds": integers("--seeds", seeds, 0),
        "limit": limit,
    }
    network, wanted = registry().get("backbone", backbone), names("--methods", methods)
    data = data_of(network, dataset)
    config = configure(network, data, preset, overrides or [], flags)

    import torch

    from fewstep.bench import run_bench
    from fewstep.engine.device import pick_device

    device = pick_device(config.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    students = [load(label, path, network) for label, path in choose(network, wanted, student or [])]
    teacher = network.load().teacher(config.backbone)
    suite = network.load().suite(config.backbone, data.load()(config.data, teacher.backbone))
    run_bench(
        network.name,
        teacher,
        suite,
        students,
        out=out or Path("runs") / f"bench-{network.name}",
        steps=config.steps,
        seeds=config.seeds,
        limit=config.limit,
        compare=compare,
        teacher_steps=config.teacher_steps,
        rescale_t=getattr(config.backbone, "rescale_t", 1.0),
        device=device,
        columns=config.columns,
        command=sys.argv,
    )


def data_of(network: Entry, dataset: str | None) -> Entry:
    """The data set: the one that was named, or the backbone's own."""
    name = dataset or getattr(network.load(), "dataset", None)
    if name is None:
        raise FewstepError(f"backbone {network.name!r} names no data set of its own; accepted: --dataset with one")
    return registry().get("dataset", name)


def configure(
    network: Entry,
    data: Entry,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    flags: Any = MappingProxyType({}),
) -> Any:
    """A ``BenchConfig`` with its tables typed. Later wins: defaults, preset, KEY=VALUE, options (``flags``)."""
    tables = {"backbone": network.load_config(), "data": data.load_config()}
    fields: dict[str, Any] = {table: (config, Field(default_factory=config)) for table, config in tables.items()}
    model = create_model("Bench", __base__=BenchConfig, **fields)
    layers = [found.read() for found in presets.find_for("bench", network, preset)]
    layers += [parse_override(text) for text in overrides]
    return validate(model, merge(*layers, {name: value for name, value in flags.items() if value is not None}))


def choose(network: Entry, methods: list[str], students: list[str]) -> list[Chosen]:
    """The folders to measure: shipped ones by method, then those given. Without either, all that are shipped."""
    shipped: dict[str, Path] = network.load().students()
    if not methods and not students:
        methods = list(shipped)
    main = [registry().get("objective", name).name for name in methods]
    for name in main:
        if name not in shipped:
            raise FewstepError(
                f"--methods: backbone {network.name!r} ships no student of method {name!r}: accepted are "
                f"{', '.join(shipped) or 'none'}; make one with fewstep distill and give it with --student"
            )
    return [(None, shipped[name]) for name in main] + [labelled(text) for text in students]


def labelled(text: str) -> Chosen:
    """``LABEL=PATH`` or ``PATH``; a path that exists as it stands is a path."""
    label, sep, path = text.partition("=")
    if not sep or Path(text).exists():
        return None, Path(text)
    if not label.strip() or not path.strip():
        raise FewstepError(f"--student {text!r}: accepted is PATH or LABEL=PATH")
    return label.strip(), Path(path.strip())


def load(label: str | None, path: Path, network: Entry) -> tuple[str | None, Backbone, StudentInfo]:
    """A student of this backbone."""
    from fewstep.checkpoint import load_student

    student, info = load_student(path)
    if info.backbone != network.name:
        raise FewstepError(
            f"--student {str(path)!r}: a student of backbone {info.backbone!r}; accepted: one of {network.name!r}"
        )
    return label, student, info
