"""Iterations of a run that spend a given number of network evaluations.

    python -m benchmarks.quality.budget 48000 --method kd --backbone trellis [KEY=VALUE ...]

prints them. For one sample and any network, a forward pass counts 1, a backward pass 2 and a forward pass with its
tangent 2. Two short runs tell what an iteration costs, and what is spent before the first one (stored pairs, an earlier
student). Shares of a run, such as ``objective.vd_after``, are the same shares of the short runs. A method with stages
of fixed length (progressive) gets short runs long enough for them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import fewstep
from fewstep.config.base import merge, parse_override
from fewstep.engine.budget import evaluations as in_passes
from fewstep.errors import FewstepError, invalid

PROBE = 20  # iterations of the shorter run; divisible by the usual shares and ratios
DOUBLINGS = 6  # at most, of PROBE, for a method that refuses so short a run


def evaluations(run: fewstep.Run) -> int:
    """The network evaluations that a run has spent."""
    return int(in_passes(run.metrics()[-1]["evaluations"]))


def iterations(budget: int, distill: Callable[..., fewstep.Run], config: dict[str, Any], folder: Path) -> int:
    """The iterations that spend ``budget``.

    Args:
        distill: ``fewstep.distill`` with method, backbone and preset given.
        config: nested keys of the run.
        folder: for the short runs; it is removed.

    Raises:
        FewstepError: for a budget too small for one iteration, or settings that are refused at any length of the run.
    """

    def spent(steps: int) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        short = {"train": {"steps": steps, "warmup": 0, "log_every": 1}}
        found = evaluations(distill(config=merge(config, short), out=folder))
        shutil.rmtree(folder)
        return found

    probe = PROBE
    for _ in range(DOUBLINGS):
        try:
            first = spent(probe)
            break
        except FewstepError:
            probe *= 2
    else:
        first = spent(probe)
    each = (spent(2 * probe) - first) / probe
    before = first - probe * each
    if budget - before < each:
        raise invalid("budget", budget, f"more than {round(before + each)}: {round(before)} before the first iteration")
    return round((budget - before) / each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", type=int)
    parser.add_argument("--method", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("keys", nargs="*")
    chosen = parser.parse_intermixed_args()

    def distill(**keys: Any) -> fewstep.Run:
        return fewstep.distill(chosen.method, chosen.backbone, console=Console(file=io.StringIO()), **keys)

    try:
        config = merge(*map(parse_override, chosen.keys))
        with tempfile.TemporaryDirectory() as scratch:
            print(iterations(chosen.budget, distill, config, Path(scratch) / "run"))
    except FewstepError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
