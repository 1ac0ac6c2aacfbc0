"""``fewstep.bench``: the benchmark as a Python function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rich.console
import torch

from fewstep.benchmark.config import BenchConfig, configure, unmeasured
from fewstep.benchmark.entrants import Stage, with_samplers
from fewstep.benchmark.report import BenchTable
from fewstep.benchmark.run import run_bench
from fewstep.benchmark.students import load_students, warn_of_other_teachers
from fewstep.config.base import merge, several
from fewstep.config.resolve import data_of
from fewstep.config.stages import chosen
from fewstep.console import Console, spinner
from fewstep.engine.folder import occupied
from fewstep.engine.teachers import open_teacher
from fewstep.errors import need
from fewstep.files import check_place
from fewstep.plugins.registry import Entry, registry

__all__ = ["BenchTable", "bench", "default_folder"]


def bench(
    backbone: str,
    methods: str | Iterable[str] = (),
    students: Any = (),
    steps: int | Iterable[int] | None = None,
    seeds: int | Iterable[int] | None = None,
    *,
    samplers: str | Iterable[str] | None = None,
    stage: str | None = None,
    dataset: str | None = None,
    preset: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    compare: str | Path | None = None,
    against: str | None = None,
    config: Mapping[str, Any] | None = None,
    console: rich.console.Console | None = None,
    resume: bool = False,
    report: bool = False,
) -> BenchTable:
    """Measure the quality and time of students by steps, along with the teacher and the undistilled network.

    ``steps``, ``seeds``, ``samplers``, ``limit``, ``device`` and ``against`` override the same keys of ``config``,
    which overrides the preset.

    Args:
        backbone: registered name of the network.
        methods: shipped students to measure, by method.
        students: folders by label. Instead of a folder: a ``Run`` or ``Student``, or any object with a ``folder``. A
            list may hold folders, named by their methods, or pairs (label, folder); a single one needs no list, as with
            ``methods``, ``steps`` and ``seeds``. Several folders of one label (a list, or a pattern such as
            ``runs/mine-*``) are replicates: they differ only in their training seed. Without ``methods`` and
            ``students`` all shipped students are measured.
        steps: step counts, by default 1, 2, 4. Those that a student's contract does not name are marked ``*``.
        seeds: seeds of the starting noise, by default 0, 1, 2; the noise is the same for all methods. If a method has
            replicates, number r is sampled with seed number r alone.
        samplers: samplers that each student is measured with besides its contract's, in rows of their own: "gamma", or
            "gamma:0.3" with the share of fresh noise.
        stage: a stage of the backbone's model, or "both": each stage samples on what the one before it decoded.
        dataset: registered data set; by default the backbone's own.
        preset: named settings that the backbone's plugin ships.
        limit: largest number of held-out samples; by default all.
        device: torch device; "auto" is CUDA if available.
        out: a new folder for the report; by default one under ``runs``, numbered if that exists.
        compare: ``rows.csv`` of an earlier bench, to report what changed.
        against: label of the method that the others are compared with, by default the first.
        config: nested keys of ``BenchConfig``, for example ``{"teacher_steps": 50, "backbone": {...}}``.
        console: shows the progress; by default on standard output.
        resume: continue the bench in ``out``: what it has measured is kept, and its report is redrawn.
        report: also write ``report.html``, a page with tables, charts and, if objects are three-dimensional, all of
            them to rotate; with ``resume`` also for a bench that has ended.

    Raises:
        FewstepError: for unknown names or keys, unusable values, an ``out`` that exists, or a package of the extra
            ``bench`` that is not installed.
    """
    named = registry().get("backbone", backbone)
    networks = chosen(named, stage)
    asked = {"steps": steps, "seeds": seeds, "samplers": samplers}
    lists = {name: None if value is None else several(value) for name, value in asked.items()}
    given = {**lists, "limit": limit, "device": device, "against": against}
    values = merge(config or {}, {name: value for name, value in given.items() if value is not None})
    configs = configure(networks, dataset, preset, values)
    for package in ("scipy", "matplotlib"):  # needed only at the end: refuse before measuring
        need(package)
    default = default_folder(named.name, stage)
    folder = Path(out) if out is not None else default if resume else _fresh(default)
    check_place("--out", folder)
    listed = list(students.items()) if isinstance(students, Mapping) else several(students)
    labelled = [item if isinstance(item, tuple) else (None, item) for item in listed]
    first, threads, many = next(iter(configs.values())), torch.get_num_threads(), len(networks) > 1
    loaded = load_students(networks, several(methods), labelled)
    warn_of_other_teachers(loaded, configs)
    entrants = with_samplers(loaded, first.samplers)
    name = f"{named.name} {'+'.join(networks)}" if many else next(iter(networks.values())).name
    earlier = Path(compare) if compare else None
    try:
        torch.set_num_threads(first.threads or threads)
        console = console or Console()
        with spinner(console, f"{name}: loading teacher and data"):
            stages = [_stage(key if many else "", networks[key], configs[key], dataset) for key in networks]
        return run_bench(
            name, stages, entrants, first, folder, compare=earlier, console=console, resume=resume, report=report
        )
    finally:
        torch.set_num_threads(threads)


def default_folder(backbone: str, stage: str | None) -> Path:
    """The folder of a bench's report unless another is given."""
    return Path("runs") / f"bench-{backbone}{f'-{stage}' if stage else ''}"


def _fresh(folder: Path) -> Path:
    """``folder``, or the first free one of ``folder-2``, ``folder-3``, ..."""
    number, free = 1, folder
    while occupied(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _stage(name: str, network: Entry, config: BenchConfig, dataset: str | None) -> Stage:
    backbone = network.load()
    teacher = open_teacher(network, config.backbone)
    data = data_of(network, dataset).load()(config.data, teacher.backbone)
    suite = backbone.suite(config.backbone, data)
    if suite is None or not suite.headline:
        raise unmeasured(type(data), network)
    return Stage(name, teacher, suite)
