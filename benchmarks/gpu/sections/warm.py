"""Compiles all tiles ahead of the timings, while other sections compare kernels with their oracles.

Writes no rows. What the tuner finds on a busy device is thrown away; the binaries stay in the caches on disk.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Sequence
from importlib import import_module

from benchmarks.gpu.bench import OURS, Bench, brief

SLOW = ("flex",)  # peers whose first call compiles
LEAST = 15.0  # seconds left below which nothing further is begun


def run(bench: Bench, modules: Sequence[str]) -> None:
    """Call our implementations, and the peers that compile, once in each case of these sections."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEWSTEP_CACHE"] = folder
        for case in (case for name in modules for case in import_module(f"{__package__}.{name}").cases(bench)):
            runs = case.setup()
            for name, build in runs.builders.items():
                if bench.deadline.left > LEAST and (runs.roles[name] == OURS or name in SLOW):
                    try:
                        build()()
                        bench.clock.wait()
                    except Exception as error:
                        print(f"{case.op} {case.what} {case.shape} {name}: {brief(error)}", flush=True)
            del runs
            gc.collect()
