"""From a resolved config to a finished run: networks, data, checkpoints, trackers, progress, export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fewstep.core.objective import Objective
from fewstep.engine import folder as folders
from fewstep.engine import state
from fewstep.engine.export import StudentInfo, save_student
from fewstep.engine.progress import RunProgress, counting
from fewstep.engine.resume import Header, Store
from fewstep.engine.trackers import JsonLines, Tracker
from fewstep.engine.trainer import NonFinite, Row, Trainer
from fewstep.engine.window import Window
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.plugins.registry import registry

if TYPE_CHECKING:
    from fewstep.config.run import Resolved

Say = Callable[[str], None]


def run(
    resolved: Resolved, out: Path, resume: bool, console: Console, trackers: Sequence[str], command: Sequence[str]
) -> Path:
    """``fewstep.config.run.start``. Whatever can be refused is refused before the folder is made."""
    chosen = [registry().get("tracker", name) for name in trackers]
    objective_cls, backbone_cls = resolved.method.load(), resolved.backbone.load()
    folders.check(out, resume)
    store = Store(out / "checkpoints", resolved.config.train.keep)
    header = _resumable(resolved, out, store) if resume else None
    progress = RunProgress(console, resolved.config.train.steps, header.step if header else 0)
    trainer = build(resolved, objective_cls(resolved.config.objective), backbone_cls, progress.say)
    with folders.locked(out):
        folders.check(out, resume)
        store.clean()
        if header is not None:
            for note in state.restore(trainer, header, store.tensors(header)):
                progress.say(note)
        if resume:
            progress.say(f"resuming {out} after step {trainer.step}")
        write_json(out / folders.CONFIG, record(resolved, command))
        outputs: list[Tracker] = [JsonLines(out, resolved.tables(), trainer.step)]
        outputs += [entry.load()(out, resolved.tables(), trainer.step) for entry in chosen]
        window = Window(header.scalars.get("window") if header else None)
        with counting(console) as count:
            trainer.dataset.prepare(trainer.device, count)
        train(trainer, store, resolved, outputs, progress, window)
        export(trainer, resolved, out / "student")
    return out


def build(resolved: Resolved, objective: Objective[Any], backbone_cls: Any, say: Say) -> Trainer:
    """A trainer at step 0: the teacher, its data and the networks."""
    config, dataset_cls = resolved.config, resolved.dataset.load()
    dataset_cls.check_config(config.data)
    teacher = backbone_cls.teacher(config.backbone)
    dataset = dataset_cls(config.data, teacher.backbone)
    return Trainer(objective, teacher, dataset, config.train, config.seed, say)


def train(
    trainer: Trainer,
    store: Store,
    resolved: Resolved,
    outputs: Sequence[Tracker],
    progress: RunProgress,
    window: Window,
) -> None:
    """The loop with its outputs; on any end the trackers are closed.

    Raises:
        FewstepError: for a loss that is no number, with what is left to resume from.
    """
    every, last = resolved.config.train.log_every, resolved.config.train.steps

    def log(row: Row) -> None:
        progress.update(row)
        window.add(row)
        if row["step"] % every == 0 or row["step"] == last:
            mean = window.take(row)
            for tracker in outputs:
                tracker.log(mean)

    def save() -> None:
        for tracker in outputs:
            tracker.flush()
        scalars = {**state.scalars(trainer), "window": window.state()}
        store.save(trainer.step, state.tensors(trainer), resolved.identity(), scalars)

    try:
        with progress:
            trainer.train(log, save)
    except NonFinite as error:
        raise FewstepError(f"{error}. {_kept(store)}") from None
    except KeyboardInterrupt:
        progress.say(f"stopped after step {trainer.step}. {_kept(store)}")
        raise
    finally:
        for tracker in outputs:
            tracker.close()


def export(trainer: Trainer, resolved: Resolved, folder: Path) -> None:
    """Write the student with its contract and what it cost."""
    which = resolved.config.train.export
    info = StudentInfo(
        contract=trainer.objective.contract(),
        method=resolved.method.name,
        backbone=resolved.backbone.name,
        dataset=resolved.dataset.name,
        plugin=resolved.backbone.distribution or resolved.backbone.plugin,
        weights=str(which),
        step=trainer.step,
        seconds=trainer.seconds,
        budget=trainer.budget.snapshot(),
        derivatives=f"{trainer.tangents.mode} ({trainer.tangents.reason})",
        config=resolved.tables(),
        versions=resolved.versions(),
    )
    save_student(folder, trainer.nets.exported(which), info)


def record(resolved: Resolved, command: Sequence[str]) -> dict[str, Any]:
    """``config.json`` of the run's folder."""
    return {
        "method": resolved.method.name,
        "backbone": resolved.backbone.name,
        "dataset": resolved.dataset.name,
        "preset": resolved.preset,
        "config": resolved.tables(),
        "sources": {key: source for key, _, source in resolved.rows()},
        "identity": resolved.identity(),
        "versions": resolved.versions(),
        "command": list(command),
    }


def _resumable(resolved: Resolved, out: Path, store: Store) -> Header | None:
    """The newest checkpoint, if its config is this one; None for a run that was killed before its first."""
    header = store.newest()
    if header is not None:
        total = bool(header.scalars.get("reads_total", True))
        folders.check_unchanged(header.config, resolved.identity(), header.step, reads_total=total)
    elif (out / folders.CONFIG).is_file():
        old = folders.started_with(out).get("identity", {})
        folders.check_unchanged(old, resolved.identity(), 0, reads_total=False)
    return header


def _kept(store: Store) -> str:
    steps = store.steps()
    if not steps:
        return "There is no checkpoint yet (see train.checkpoint_every): start again with another --out"
    return (
        f"The checkpoint of step {steps[-1]} is kept ({store.path(steps[-1])}); --resume goes on from it and repeats "
        "the same steps, so a cause in the config (train.lr, train.clip, train.precision) needs a new run"
    )
