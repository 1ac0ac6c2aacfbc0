"""An op call inside torch.compile: a graph break around it, so that it runs as without torch.compile.

A module of its own, imported when torch.compile first traces an op: ``torch.compiler.disable`` imports torch's
compiler, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch

from fewstep.ops.table import call


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_eagerly(op: str, *args: Any) -> Any:
    """:func:`fewstep.ops.table.call`, never traced."""
    return call(op, *args)
