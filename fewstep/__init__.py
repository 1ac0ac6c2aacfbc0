"""fewstep: few-step distillation of flow and diffusion models.

    import fewstep

    run = fewstep.distill(method="mdt-vd", backbone="toy", train={"steps": 200})
    student = fewstep.load(run)
    samples = student.sample(8, steps=1)
    table = fewstep.bench(backbone="toy", students={"mine": run}, steps=[1, 2])

What authors of objectives, backbones and data sets need is in ``fewstep.core``; plugins register with ``hookimpl``.
Importing this package imports no torch: the names below load on first use.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from fewstep.errors import FewstepError
from fewstep.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from fewstep.api.distillation import Run, distill
    from fewstep.api.generation import generate
    from fewstep.api.loading import load
    from fewstep.api.push import push
    from fewstep.api.students import Student
    from fewstep.benchmark.api import BenchTable, bench

__version__ = "0.1.0"
IMPORTED = time.perf_counter()  # approximately when the program began

LAZY = {
    "Run": "fewstep.api.distillation",
    "distill": "fewstep.api.distillation",
    "Student": "fewstep.api.students",
    "load": "fewstep.api.loading",
    "BenchTable": "fewstep.benchmark.api",
    "bench": "fewstep.benchmark.api",
    "generate": "fewstep.api.generation",
    "push": "fewstep.api.push",
}

__all__ = [
    "BenchTable",
    "FewstepError",
    "Run",
    "Student",
    "__version__",
    "bench",
    "distill",
    "generate",
    "hookimpl",
    "load",
    "push",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    value = getattr(importlib.import_module(LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
