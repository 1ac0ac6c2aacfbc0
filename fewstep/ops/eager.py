"""A call that torch.compile does not trace.

This is a module of its own, imported when torch.compile first meets an op, because ``torch.compiler.disable`` imports
torch's compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_eagerly(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, never traced: a graph break."""
    return function(*args)
