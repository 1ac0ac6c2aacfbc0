"""``fewstep.distill``: from names and settings to a trained student."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console

from fewstep.config.base import several
from fewstep.config.recorded import Words
from fewstep.config.resolve import resolve_run
from fewstep.config.run import Resolved
from fewstep.console import Console
from fewstep.engine.folder import check_stages
from fewstep.engine.processes import joined
from fewstep.engine.session import start
from fewstep.engine.trackers import METRICS
from fewstep.texts import read_text

if TYPE_CHECKING:
    import torch

    from fewstep.api.students import Student

Row = dict[str, Any]
Callback = Callable[[Row], None]


@dataclass(frozen=True)
class Run:
    """A finished run. ``folder`` holds its config, metrics, checkpoints and student; for several stages it holds one
    such folder per stage, under the stage's name."""

    folder: Path
    stages: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[str, Path]:
        """The folder by stage; for a run of one stage, its own folder under the name ""."""
        return {name: self.folder / name for name in self.stages} or {"": self.folder}

    def student(self, stage: str = "", device: str | torch.device = "auto") -> Student:
        """The trained student, ready to sample. See ``fewstep.load``.

        Raises:
            FewstepError: for a stage that the run does not have.
        """
        from fewstep.api.loading import load
        from fewstep.errors import unknown

        if stage not in self.folders:
            raise unknown("stage", stage, self.folders)
        return load(self.folders[stage], device=device)

    def metrics(self, stage: str = "") -> list[Row]:
        """The rows of ``metrics.jsonl``: step, loss by term, total, grad_norm, lr, seconds, evaluations."""
        text = read_text(self.folders[stage] / METRICS)
        return [json.loads(line) for line in text.splitlines()]

    def _repr_html_(self) -> str:
        rows = []
        for stage, folder in self.folders.items():
            last = (self.metrics(stage) or [{}])[-1]
            losses = ", ".join(f"{name} {value:.4g}" for name, value in last.get("loss", {}).items())
            cells = (stage, str(folder), str(last.get("step", "")), losses)
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        head = "".join(f"<th>{name}</th>" for name in ("stage", "folder", "step", "loss"))
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def distill(
    method: str | None = None,
    backbone: str | None = None,
    *,
    stage: str | None = None,
    dataset: str | None = None,
    preset: str | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[str] = (),
    console: rich.console.Console | None = None,
    **tables: Any,
) -> Run:
    """Distil a teacher into a few-step student; ``fewstep distill`` from Python.

        run = fewstep.distill("mdt-vd", "trellis", out="runs/a", train={"steps": 400}, objective={"lambda_vd": 0.5})

    Later values win, in this order: defaults, ``preset``, ``config``, ``overrides``, ``tables``.

    Args:
        method: registered objective. Method and backbone may be left out if ``config`` or ``resume`` gives them.
        backbone: registered backbone, whose teacher is distilled.
        stage: a stage of the backbone's model, or "both", which trains each in a folder of its name.
        dataset: registered data set; by default the backbone's own.
        preset: named settings that a plugin ships.
        config: TOML file, nested tables, or another run (its folder or ``config.json``), whose method, backbone and
            keys are taken.
        overrides: as on the command line, ``"train.steps=400"``.
        out: folder of the run; by default ``runs/<method>-<backbone>``.
        resume: continue the run in ``out`` from its newest checkpoint, with its own config; other settings given must
            agree with it.
        callbacks: each is called with every row of ``metrics.jsonl`` (every ``train.log_every`` iterations), see
            ``Run.metrics``. An exception raised by one ends the run; its checkpoints stay.
        trackers: registered trackers besides ``metrics.jsonl``.
        console: where progress goes; by default standard output.
        tables: top-level keys of the config: ``train={"steps": 400}``, ``objective=``, ``data=``, ``seed=1``, or of one
            stage alone, ``slat={"train": {...}}``. The backbone's own table is given as ``config={"backbone": {...}}``.

    Raises:
        FewstepError: for anything that a user can put right.
    """
    if isinstance(config, str):
        config = Path(config)
    layers = [*([] if config is None else [config]), *several(overrides), tables]
    words = Words(method, backbone, stage, dataset, preset)
    resolved = resolve_run(words, layers, Path(out) if resume and out is not None else None)
    console, trackers = console or Console(), several(trackers)
    return run_resolved(resolved, out, resume, console, callbacks=several(callbacks), trackers=trackers)


def run_resolved(
    resolved: Mapping[str, Resolved],
    out: Path | str | None,
    resume: bool,
    console: rich.console.Console,
    *,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Run:
    """Run what ``resolve_stages`` returned, one stage after another; ``command`` is recorded. See ``distill``."""
    folder = Path(out) if out is not None else next(iter(resolved.values())).folder
    if len(resolved) > 1:
        stages = tuple(resolved)
        resumes = {folder / name: begun for name, begun in check_stages(folder, stages, resume).items()}
    else:
        stages, resumes = (), {folder: resume}
    more: dict[str, Any] = {"trackers": trackers, "command": command, "callbacks": callbacks}
    for stage, (place, begun) in zip(resolved.values(), resumes.items(), strict=True):
        with joined(stage.config.parallel, stage.config.train.device) as processes:
            start(stage, place, begun, console, processes=processes, stages=resolved if stages else {}, **more)
    return Run(folder, stages)
