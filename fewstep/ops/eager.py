"""An op call that torch.compile does not look into.

A module of its own, imported when torch.compile first meets an op: ``torch.compiler.disable`` imports torch's compiler,
which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch

from fewstep.ops.table import run


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_eagerly(op: str, *args: Any) -> Any:
    """:func:`fewstep.ops.table.run`, never traced: a graph break around the op."""
    return run(op, *args)
