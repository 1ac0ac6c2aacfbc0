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
from fewstep.benchmark.students import load_students
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
    """Measure quality and time of students by steps, beside the teacher and the undistilled network.

    ``steps``, ``seeds``, ``samplers``, ``limit``, ``device`` and ``against`` win over the same keys of ``config``, and
    that over the preset.

    Args:
        backbone: registered name of the network.
        methods: shipped students to measure, by method.
        students: folders by label. In place of a folder: anything with one as its ``folder``, as
            ``fewstep.distill`` and ``fewstep.load`` return it. A list may hold folders, named by their methods, or
            (label, folder); one alone needs no list, as with ``methods``, ``steps`` and ``seeds``. Several folders of
            one label (a list, or a pattern as ``runs/mine-*``) are replicates: they differ in their training seed only.
            Without ``methods`` and ``students`` all shipped students are measured.
        steps: step counts, by default 1, 2, 4. Those that a student's contract does not name are marked ``*``.
        seeds: seeds of the starting noise, by default 0, 1, 2; the noise is the same for all methods. Where a method
            has replicates, number r is sampled with seed number r alone.
        samplers: samplers that each student is measured with beside its contract's own, in rows of their own:
            "gamma", or "gamma:0.3" with the share of fresh noise.
        stage: a stage of the backbone's model, or "both": each stage samples on what the one before it decoded.
        dataset: registered data set; by default the backbone's own.
        preset: named settings that the backbone's plugin ships.
        limit: only so many held-out samples.
        device: torch device; "auto" is CUDA where there is one.
        out: a new folder for the report; by default one under ``runs``, numbered where it exists.
        compare: ``rows.csv`` of an earlier bench, to report what changed.
        against: label of the method that the others are compared with, by default the first.
        config: nested keys of ``BenchConfig``, for example ``{"teacher_steps": 50, "backbone": {...}}``.
        console: shows the progress; by default on standard output.
        resume: go on with the bench in ``out``: what it has measured is kept, and its report is drawn anew.
        report: write ``report.html`` too, a page with tables, charts and, where objects have three dimensions, all of
            them to turn; with ``resume`` also of a bench that ended.

    Raises:
        FewstepError: for unknown names or keys, unusable values, an ``out`` that exists, or a package of the extra
            ``bench`` that is not installed.
    """
    named = registry().get("backbone", backbone)
    networks = chosen(named, stage)
    asked = {"steps": steps, "seeds": seeds, "samplers": samplers}
    counts = {name: None if one is None else several(one) for name, one in asked.items()}
    given = {**counts, "limit": limit, "device": device, "against": against}
    values = merge(config or {}, {name: value for name, value in given.items() if value is not None})
    configs = configure(networks, dataset, preset, values)
    for package in ("scipy", "matplotlib"):  # needed at the end only, so refuse before measuring
        need(package)
    default = default_folder(named.name, stage)
    folder = Path(out) if out is not None else default if resume else _fresh(default)
    check_place("--out", folder)
    pairs = list(students.items()) if isinstance(students, Mapping) else several(students)
    labelled = [one if isinstance(one, tuple) else (None, one) for one in pairs]
    first, threads, many = next(iter(configs.values())), torch.get_num_threads(), len(networks) > 1
    entrants = with_samplers(load_students(networks, several(methods), labelled), first.samplers)
    name = f"{named.name} {'+'.join(networks)}" if many else next(iter(networks.values())).name
    earlier = Path(compare) if compare else None
    try:
        torch.set_num_threads(first.threads or threads)
        console = console or Console()
        with spinner(console, f"{name}: loading teacher and data"):
            stages = [_stage(one if many else "", networks[one], configs[one], dataset) for one in networks]
        return run_bench(
            name, stages, entrants, first, folder, compare=earlier, console=console, resume=resume, report=report
        )
    finally:
        torch.set_num_threads(threads)


def default_folder(backbone: str, stage: str | None) -> Path:
    """Where the report of a bench goes unless told otherwise."""
    return Path("runs") / f"bench-{backbone}{f'-{stage}' if stage else ''}"


def _fresh(folder: Path) -> Path:
    """``folder``, or the first free one of ``folder-2``, ``folder-3``, ..."""
    number, found = 1, folder
    while occupied(found):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _stage(name: str, network: Entry, config: BenchConfig, dataset: str | None) -> Stage:
    backbone = network.load()
    teacher = open_teacher(network, config.backbone)
    data = data_of(network, dataset).load()(config.data, teacher.backbone)
    suite = backbone.suite(config.backbone, data)
    if suite is None or not suite.headline:
        raise unmeasured(type(data), network)
    return Stage(name, teacher, suite)
