"""One rung of the ladder: train every method under every seed, then measure all students in one bench.

    python -m benchmarks.quality.rung digits
    python -m benchmarks.quality.rung digits --budgets 0.25 0.5 1 2 4 --out runs/quality/digits-budgets
    python -m benchmarks.quality.rung ring --methods all --evaluations 600000 --steps 1 2 4 8

Methods are trained with the backbone's default presets, on ``structure-long`` with those called long; with
``--evaluations``, for that many network evaluations each. Rerun the same command to continue after an interruption. The
structure rungs generate their furniture first (25 minutes for 2,000 pieces, 6 for 400) and measure on the held-out
pieces.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fewstep
from benchmarks.quality.budget import iterations
from fewstep.config.base import merge, read_toml
from fewstep.config.resolve import resolve_stages
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

CATALOGUE = "plugins/shapes3d/fewstep_shapes3d/assets/sweethome3d"
PLANS = Path(__file__).parent / "plans"
FOUR = ("mdt-vd", "mdt-vm", "cm", "pcm")


@dataclass(frozen=True)
class Rung:
    """What is distilled, and on which data.

    Args:
        keys: nested keys of every run and of the bench.
        train: keys under ``train`` of every run.
        measured: keys of the bench, where it uses other data.
        searched: the plan of the search for the methods' settings; its methods are the family.
        furniture: folder of the set of procedural furniture, generated before the first training.
        pieces: number of these pieces to train on.
        preset: of every method; None for the default.
    """

    backbone: str
    keys: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    searched: str = "checkerboard"
    furniture: Path | None = None
    pieces: int = 0
    preset: str | None = None


def toy(target: str) -> Rung:
    """2-D points and a learned teacher, from which every student starts, as in the search for settings."""
    batch = {"batch_size": 256, "lr_schedule": "cosine", "warmup": 10}
    return Rung("toy", {"backbone": {"target": target, "teacher": "learned"}}, batch)


def learned(source: str) -> Rung:
    """Small images and a learned teacher, from which every student starts, as in the search for settings."""
    keys = {"source": source, "teacher": "learned", "pretrain": 4000}
    batch = {"batch_size": 128, "lr_schedule": "cosine", "warmup": 10}
    return Rung("images", {"backbone": keys}, batch, searched="family-digits")


def structure(furniture: str, pieces: int, preset: str | None = None) -> Rung:
    """The nano structure flow on the catalogue's objects and procedural furniture, measured on held-out furniture."""
    keys, measured = {"data": {"root": f"{CATALOGUE},{furniture}"}}, {"data": {"root": furniture}}
    batch = {"batch_size": 8, "lr_schedule": "cosine", "warmup": 10}
    return Rung("trellis", keys, batch, measured, "family-structure", Path(furniture), pieces, preset)


RUNGS = {
    "ring": toy("ring"),
    "checkerboard": toy("checkerboard"),
    "moons": toy("moons"),
    "digits": Rung("images", {"backbone": {"source": "digits"}}, searched="family-digits"),
    "mnist": Rung("images", {"backbone": {"source": "mnist"}}, searched="family-digits"),
    "digits-learned": learned("digits"),
    "mnist-learned": learned("mnist"),
    "structure": structure("runs/furniture", 2000),
    "structure-long": structure("runs/furniture", 2000, "long"),
    "structure-400": structure("runs/furniture-400", 400),
}


@dataclass(frozen=True)
class Training:
    """One student: a method, its seed and a multiple of the budget."""

    rung: str
    method: str
    seed: int
    budget: float
    evaluations: int | None

    @property
    def label(self) -> str:
        return self.method if self.budget == 1 else f"{self.method}@{self.budget:g}x"

    def folder(self, out: Path) -> Path:
        return out / f"{self.label}-{self.seed}"


@lru_cache
def steps_of(rung: str, method: str, evaluations: int | None) -> int:
    """The iterations of a run at budget 1, computed once per process."""
    chosen = RUNGS[rung]
    config = merge({"train": {"threads": 1}}, chosen.keys, {"train": chosen.train})
    if evaluations is None:
        (resolved,) = resolve_stages(method, chosen.backbone, preset=chosen.preset, layers=[config]).values()
        return resolved.config.train.steps
    quiet = partial(fewstep.distill, method, chosen.backbone, preset=chosen.preset, console=Console(file=io.StringIO()))
    with tempfile.TemporaryDirectory() as scratch:
        return iterations(evaluations, quiet, config, Path(scratch) / "run")


def train(one: Training, out: Path) -> tuple[Path, str]:
    """Train a student, resume it, or leave a finished one; returns its folder, and the error that ended it or ""."""
    folder, rung = one.folder(out), RUNGS[one.rung]
    quiet = Console(file=io.StringIO())
    try:
        if (folder / "student" / "config.json").exists():
            pass
        elif (folder / "config.json").exists():
            fewstep.distill(out=folder, resume=True, console=quiet)
        else:
            steps = steps_of(one.rung, one.method, one.evaluations)
            own = {"seed": one.seed, "train": {"threads": 1, "steps": int(steps * one.budget)}}
            config = merge(rung.keys, {"train": rung.train}, own)
            fewstep.distill(one.method, rung.backbone, preset=rung.preset, config=config, out=folder, console=quiet)
    except FewstepError as error:  # a loss that is not finite does not stop the other trainings
        return folder, str(error)
    return folder, ""


def train_all(trainings: Sequence[Training], out: Path, jobs: int) -> None:
    """All of them, ``jobs`` at a time, each by one thread.

    Raises:
        FewstepError: for those that failed, once the others are done.
    """
    failed = []
    with counting(Console()) as progress:
        for done, (folder, error) in enumerate(_trained(trainings, out, jobs), 1):
            if error:
                failed.append(f"{folder}: {error}")
            progress(done, len(trainings), f"{'failed' if error else 'trained'} {folder.name}")
    if failed:
        raise FewstepError("\n".join(failed))


def _trained(trainings: Sequence[Training], out: Path, jobs: int) -> Iterator[tuple[Path, str]]:
    if jobs == 1:
        yield from (train(one, out) for one in trainings)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(train, one, out) for one in trainings]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run(chosen: argparse.Namespace) -> None:
    """Trains what is not trained yet, then measures."""
    rung, out, methods = chosen.rung, chosen.out or Path("runs/quality") / chosen.rung, chosen.methods
    where, bench = RUNGS[rung], out / "bench"
    if methods == ["all"]:
        space = read_toml(PLANS / f"{where.searched}.toml")["space"]
        methods = sorted(space, key=lambda method: method != FOUR[0])
    for method in methods:  # a wrong name, before anything is made
        registry().get("objective", method)
    if where.furniture and not where.furniture.exists():
        from fewstep_shapes3d.data.pieces import prepare_furniture

        with counting(Console()) as progress:
            prepare_furniture(where.furniture, pieces=where.pieces, progress=progress)
    trainings = [
        Training(rung, method, seed, budget, chosen.evaluations)
        for budget in chosen.budgets
        for seed in chosen.seeds
        for method in methods
    ]
    train_all(trainings, out, chosen.jobs)
    students: dict[str, list[Path]] = {}
    for one in trainings:
        students.setdefault(one.label, []).append(one.folder(out))
    own = {"threads": 1} | ({} if chosen.resamples is None else {"resamples": chosen.resamples})
    fewstep.bench(
        where.backbone,
        students=students,
        steps=chosen.steps,
        seeds=chosen.seeds,
        config=merge(where.keys, where.measured, own),
        out=bench,
        resume=bench.exists(),
        report=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rung", choices=RUNGS)
    parser.add_argument("--out", type=Path, help="by default runs/quality/RUNG")
    parser.add_argument("--methods", nargs="+", default=FOUR, help="or 'all' of the family; the first is compared with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4], help="that the bench measures")
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0], help="multiples of the iterations")
    parser.add_argument("--evaluations", type=int, help="network evaluations of each training, for equal budgets")
    parser.add_argument("--resamples", type=int, help="of the held-out objects, for the intervals")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        run(chosen)
    except FewstepError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
