"""The training loop with its outputs: metrics, progress, checkpoints, sample sheets, and the message when it ends
early."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fewstep.config.run import Resolved
from fewstep.engine.liveness import Lost
from fewstep.engine.progress import RunProgress
from fewstep.engine.resume import scalars_of, tensors_of
from fewstep.engine.sheets import SampleSheets
from fewstep.engine.store import Store
from fewstep.engine.trackers import Tracker, Window
from fewstep.engine.trainer import NonFinite, Row, Trainer
from fewstep.errors import FewstepError
from fewstep.files import Unwritable, writing

Callback = Callable[[Row], None]


def train(
    trainer: Trainer,
    store: Store,
    resolved: Resolved,
    outputs: Sequence[Tracker],
    progress: RunProgress,
    window: Window,
    callbacks: Sequence[Callback] = (),
    sheets: SampleSheets | None = None,
) -> None:
    """The loop with its outputs; the trackers are closed however it ends.

    Raises:
        FewstepError: for a loss or gradient that is not finite, or a full disk, saying what can be resumed from.
    """
    out, (every, last) = store.folder.parent, (resolved.config.train.log_every, resolved.config.train.steps)

    def log(row: Row) -> None:
        store.check()
        progress.update(row, trainer.reader.waited)
        window.add(row)
        if row["step"] % every == 0 or row["step"] == last:
            mean = window.take(row)
            with writing(out):
                for tracker in outputs:
                    tracker.log(mean)
            for callback in callbacks:
                callback(mean)

    def save() -> None:
        with writing(out):
            for tracker in outputs:
                tracker.flush()
        scalars = {**scalars_of(trainer), "window": window.state}
        store.save(trainer.step, tensors_of(trainer), resolved.identity(), scalars)

    def draw(step: int) -> None:
        if sheets is not None:
            with writing(out):
                sheets.draw(step, outputs)

    try:
        with progress, store, trainer.processes.watched():
            if trainer.step == 0:  # shows the untrained student, and fails early if drawing cannot work
                draw(0)
            trainer.train(log, save, draw)
    except Lost as error:
        error.args = (f"{error}. {kept(store, trainer.step)}",)
        raise
    except NonFinite as error:
        cause = "; a cause in the config (train.lr, train.clip, train.precision) needs a new run"
        raise FewstepError(f"{error}. {kept(store, trainer.step)}{cause if store.steps() else ''}") from None
    except Unwritable as error:
        raise FewstepError(f"{error}. {kept(store, trainer.step)}") from error
    except BaseException:
        progress.say(f"stopped after step {trainer.step}. {kept(store, trainer.step)}")
        raise
    finally:
        with writing(out):
            for tracker in outputs:
                tracker.close()


def kept(store: Store, done: int) -> str:
    """In words, what a run that ends after ``done`` iterations can be resumed from."""
    steps = store.steps()
    if not steps:
        again = "--resume starts from the beginning" if done else "nothing is kept"
        return f"There is no checkpoint yet (see train.checkpoint_every); {again}"
    return (
        f"The checkpoint of step {steps[-1]} is kept ({store.path(steps[-1])}); --resume goes on from it and repeats "
        "the same steps"
    )
