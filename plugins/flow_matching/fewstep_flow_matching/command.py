"""``fewstep teach`` for every backbone that has no such command of its own. Imports no torch."""

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
    Toml,
    Trackers,
    distill,
)
from fewstep.cli.options import DEVICE


def teach(
    overrides: Overrides = None,
    backbone: Annotated[str | None, Option("--backbone", help="The network that is trained.")] = None,
    stage: Annotated[str | None, STAGE] = None,
    dataset: DataSet = None,
    preset: Preset = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    toml: Toml = False,
    help_config: HelpConfig = False,
    tracker: Trackers = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Train a teacher from data by flow matching, from random weights.

    The run is one of method flow-matching. Later wins: defaults, --preset, --config, KEY=VALUE.
    """
    words = ("flow-matching", backbone, stage, dataset, preset)
    distill(overrides, *words, config, out, resume, dry_run, toml, help_config, tracker, device)
