"""``fewstep bench``: methods x steps x seeds against the teacher and the undistilled network."""

from __future__ import annotations

from pathlib import Path

import typer

from fewstep.cli.distill import needed
from fewstep.cli.lists import integers, names


def bench(
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Config keys, e.g. backbone.guidance=2."
    ),
    backbone: str = typer.Option(None, "--backbone", "-b", help="The network that is measured."),
    dataset: str = typer.Option(None, "--dataset", "-d", help="Data set; the backbone names its own by default."),
    methods: str = typer.Option(None, "--methods", help="Shipped students of these methods: a,b."),
    student: list[str] = typer.Option(
        None, "--student", metavar="[LABEL=]PATH", help="A student's folder; repeatable."
    ),
    steps: str = typer.Option("1,2,4", "--steps", help="Step counts."),
    seeds: str = typer.Option("0,1,2", "--seeds", help="Seeds of the noise; intervals are over them."),
    limit: int = typer.Option(None, "--limit", min=1, help="Only so many held-out samples."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder of the report; must not exist."),
    compare: Path = typer.Option(None, "--compare", help="CSV of an earlier bench: what moved."),
) -> None:
    """Measure students: quality and time by steps."""
    needed("--backbone", "backbone", backbone)
    steps_, seeds_, methods_ = integers("--steps", steps, 1), integers("--seeds", seeds, 0), names("--methods", methods)
    raise NotImplementedError((overrides, dataset, student, limit, out, compare, steps_, seeds_, methods_))
