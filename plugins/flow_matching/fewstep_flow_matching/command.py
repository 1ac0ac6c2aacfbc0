"""``fewstep teach`` for backbones without a ``teach`` command of their own. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from fewstep.cli.distill import (
    STAGE,
    Config,
    DataSet,
    DryRun,
    HelpConfig,
    Out,
    Overrides,
    Preset,
    Resume,
    Room,
    Toml,
    Trackers,
    distill,
)
from fewstep.cli.options import DEVICE


def teach(
    overrides: Overrides = None,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Network to train.")] = None,
    stage: Annotated[str | None, STAGE] = None,
    dataset: DataSet = None,
    preset: Preset = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    memory: Room = None,
    toml: Toml = False,
    help_config: HelpConfig = False,
    tracker: Trackers = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Train a teacher from data by flow matching, from random weights.

    The run is one of method flow-matching. Later wins: defaults, --preset, --config, KEY=VALUE.
    """
    distill(
        overrides,
        "flow-matching",
        backbone,
        stage,
        dataset,
        preset,
        config,
        out,
        resume=resume,
        dry_run=dry_run,
        memory=memory,
        toml=toml,
        help_config=help_config,
        tracker=tracker,
        device=device,
    )
