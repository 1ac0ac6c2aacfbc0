"""From a resolved config to a finished run: networks, data, checkpoints, trackers, progress, export."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from fewstep.config.run import Resolved, versions
from fewstep.console import spinner
from fewstep.core.objective import Objective
from fewstep.engine import folder as folders
from fewstep.engine.export import StudentInfo, load_student, save_student
from fewstep.engine.inputs import check_inputs
from fewstep.engine.outputs import Callback, kept, train
from fewstep.engine.processes import Processes
from fewstep.engine.progress import RunProgress, counting
from fewstep.engine.resume import restore
from fewstep.engine.sheets import SampleSheets
from fewstep.engine.store import Checkpoint, Store
from fewstep.engine.teachers import beginner, open_teacher
from fewstep.engine.trackers import JsonLines, Tracker, Window
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError
from fewstep.files import Unwritable, clean, write_json, writing
from fewstep.plugins.registry import registry

Say = Callable[[str], None]


def start(
    resolved: Resolved,
    out: Path,
    resume: bool,
    console: Console,
    *,
    processes: Processes | None = None,
    trackers: Sequence[str] = (),
    command: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    stages: Mapping[str, Resolved] = MappingProxyType({}),
) -> Path:
    """Distil, or continue a run that was stopped, and export the student into ``student/`` of the run's folder.

    Whatever can be refused is refused before the folder is made.

    Args:
        out: the run's folder, which is also returned.
        processes: those that share the run; the first of them writes and prints.
        trackers: registered trackers besides ``metrics.jsonl``.
        command: the command line, for the record.
        callbacks: called with every row of ``metrics.jsonl``. An exception in one ends the run as an interrupt does.
        stages: all stages that this run is one of, recorded so that ``--resume`` knows those that have not begun.

    Raises:
        FewstepError: for anything that a user can put right.
    """
    chosen = [registry().get("tracker", name).load() for name in trackers]
    processes = processes or Processes()
    folders.check(out, resume)
    store = Store(out / "checkpoints", resolved.config.train.keep, processes)
    checkpoint = _resumable(resolved, out, store) if resume else None
    check_inputs(resolved, begun=checkpoint is not None)
    progress = RunProgress(console, resolved.config.train.steps, checkpoint.step if checkpoint else 0, name=out.name)
    with spinner(console, f"{out.name}: loading teacher and data"):
        trainer = build(resolved, progress.say, processes)
        if checkpoint is None or resolved.config.lora.rank:  # checkpoints do not hold the frozen weights under adapters
            go_on_with(trainer, resolved.config.train.start)
        sheets = SampleSheets(trainer, resolved, out / "samples") if trainer.config.samples_every else None
    processes.wait()  # all have looked at the folder before the first one writes there
    with _held(trainer, out, resume) as writes:
        if writes:
            clean(store.folder)
        if checkpoint is not None:
            for note in restore(trainer, checkpoint):
                progress.say(note)
        progress.say(trainer.nets.sizes())
        if resume:
            progress.say(f"resuming {out} after step {trainer.step}")
        outputs: list[Tracker] = []
        if writes:
            write_json(out / folders.CONFIG, record(resolved, command, stages))
            outputs = [JsonLines(out, resolved.tables(), trainer.step)]
            with writing(out):
                outputs += [tracker(out, resolved.tables(), trainer.step) for tracker in chosen]
        window = Window(checkpoint.scalars["window"] if checkpoint else None)
        with counting(console) as count:
            trainer.prepare(count)
        del checkpoint  # frees its tensors
        train(trainer, store, resolved, outputs, progress, window, callbacks if writes else (), sheets)
        if not trainer.nets.averages.updates["student"]:  # a run shorter than the first phase of a critic
            progress.say(f"warning: none of the {trainer.step} iterations trained the student: it is as it started")
        try:
            export(trainer, resolved, out / "student")
        except Unwritable as error:
            raise FewstepError(f"{error}. {kept(store, trainer.step)}") from error
    return out


def build(resolved: Resolved, say: Say, processes: Processes | None = None) -> Trainer:
    """A trainer at step 0: the teacher, its data and the networks."""
    config, dataset_cls = resolved.config, resolved.dataset.load()
    objective: Objective[Any] = resolved.method.load()(config.objective)
    if objective.teaches:
        teacher = beginner(resolved.backbone, config.backbone, config.seed)
    else:
        teacher = open_teacher(resolved.backbone, config.backbone)
    dataset = objective.data(dataset_cls(config.data, teacher.backbone), teacher)
    return Trainer(objective, teacher, dataset, config.train, config.seed, say, config.lora, processes, config.parallel)


def go_on_with(trainer: Trainer, start: Path | None) -> None:
    """Start from another run's student, whose cost is added to this run's."""
    if start is not None:
        student, info = load_student(start)
        trainer.nets.start_from(student)
        if trainer.processes.rank == 0:
            trainer.budget.add(info.budget)


def export(trainer: Trainer, resolved: Resolved, folder: Path) -> None:
    """Write the student with its contract and what it cost."""
    which = resolved.config.train.export
    info = StudentInfo(
        contract=trainer.contract,
        method=resolved.method.name,
        backbone=resolved.backbone.name,
        dataset=resolved.dataset.name,
        plugin=resolved.backbone.distribution or resolved.backbone.plugin,
        weights=str(which),
        step=trainer.step,
        seconds=trainer.seconds,
        budget=trainer.evaluations,
        derivatives=f"{trainer.derivatives.tangents.mode} ({trainer.derivatives.tangents.reason})",
        config=resolved.tables(),
        versions=versions(),
    )
    student = trainer.nets.exported(which)
    if trainer.processes.rank == 0:
        save_student(folder, student, info, trainer.nets.parameters["student"])
    trainer.processes.wait()


def record(resolved: Resolved, command: Sequence[str], stages: Mapping[str, Resolved]) -> dict[str, Any]:
    """``config.json`` of the run's folder; ``fewstep.config.recorded`` reads it."""
    entries = plan(resolved) | {"identity": resolved.identity(), "versions": versions(), "command": list(command)}
    return entries | ({"stages": {name: plan(stage) for name, stage in stages.items()}} if stages else {})


def plan(resolved: Resolved) -> dict[str, Any]:
    """The registered names of one stage's run, with every key and its source."""
    return {
        "method": resolved.method.name,
        "backbone": resolved.backbone.name,
        "dataset": resolved.dataset.name,
        "preset": resolved.preset,
        "config": resolved.tables(),
        "sources": {key: source for key, _, source in resolved.rows()},
    }


def _resumable(resolved: Resolved, out: Path, store: Store) -> Checkpoint | None:
    """The newest checkpoint, after checking that its config is this one; None if the run has none yet."""
    checkpoint = store.newest()
    if checkpoint is not None:
        total = checkpoint.scalars["reads_total"]
        folders.check_unchanged(checkpoint.config, resolved.identity(), checkpoint.step, reads_total=total)
    elif (out / folders.CONFIG).is_file():
        folders.check_unchanged(folders.started_with(out), resolved.identity(), 0, reads_total=False)
    return checkpoint


@contextmanager
def _held(trainer: Trainer, out: Path, resume: bool) -> Iterator[bool]:
    """Hold the run's folder, and yield whether this process is the one that writes into it.

    A new run that fails before its first iteration leaves no folder. An interrupted one keeps it, for ``--resume``.
    """
    if trainer.processes.rank:
        yield False
        return
    with folders.locked(out):
        folders.check(out, resume)
        try:
            yield True
        except Exception:
            if not resume and trainer.step == 0:
                shutil.rmtree(out, ignore_errors=True)
            raise
