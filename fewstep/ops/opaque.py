"""Kernels that torch.compile neither looks into nor breaks the graph at.

A kernel that works with a layout's lists, launches Triton or is an ``autograd.Function`` with a ``jvp`` cannot be
traced. As a torch op it goes into a graph whole, with its gradient and its tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fewstep.ops.launches import Launches
from fewstep.ops.nodes import Node
from fewstep.ops.tangents import transforms
from fewstep.ops.wire import flat


def opaque(name: str, launches: Launches, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function to register in the op table for a kernel that torch.compile must not look into.

    Args:
        name: of the torch op ``fewstep::<name>`` and, for its derivatives, ``<name>_...``; unique.
        launches: its parts.
        run: what serves outside of torch.compile; by default ``launches.run``.

    Returns:
        A function of tensors, packed layouts, numbers and None. Outside of torch.compile it is ``run``. Inside, under
        nested ``torch.func`` transforms, it is ``launches.run``, traced.
    """
    eager, node = run or launches.run, Node(name, launches)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            return eager(*args)
        if len(transforms()) > 1:
            return launches.run(*args)
        found = node.value(*flat(args))
        return found[0] if launches.outputs == 1 else tuple(found[: launches.outputs])

    return call
