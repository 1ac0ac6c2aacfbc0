"""Directional derivatives of a network: one pass, two passes or finite differences, chosen once and said aloud.

``torch.func.jvp`` is used and never ``torch.autograd.functional.jvp``, which returns 0 through an opaque kernel
without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["one-pass", "two-pass", "finite-difference"]
Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Tangents:
    """The chosen way to differentiate.

    Args:
        mode: "one-pass" gets value and tangent together; "two-pass" takes the tangent under ``no_grad`` and the
            value by an ordinary forward (activation checkpointing needs it); "finite-difference" is central.
        step: half-width of the finite difference, in units of the tangent.
        reason: why this mode, for the run's log.
    """

    mode: Mode = "one-pass"
    step: float = 5e-3
    reason: str = "default"

    def __call__(self, f: Function, primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
        """(f(*primals) with its graph, detached tangent of f along ``tangents``)."""
        if self.mode == "one-pass":
            found = torch.func.jvp(f, primals, tangents)
            return found[0], found[1].detach()
        with torch.no_grad():
            if self.mode == "two-pass":
                tangent = torch.func.jvp(f, primals, tangents)[1]
            else:
                tangent = central_difference(f, primals, tangents, self.step)
        return f(*primals), tangent.detach()


def central_difference(f: Function, primals: Tensors, tangents: Tensors, step: float) -> Tensor:
    """(f(x + h d) - f(x - h d)) / 2h with one random state for both evaluations.

    Times ([B] vectors) are moved in float64: t - h in float32 loses half of the digits that the difference keeps.
    """

    def shifted(h: float) -> Tensor:
        moved = [_moved(p, d, h) for p, d in zip(primals, tangents, strict=True)]
        with torch.random.fork_rng():
            return f(*moved)

    return (shifted(step) - shifted(-step)) / (2 * step)


def _moved(primal: Tensor, direction: Tensor, h: float) -> Tensor:
    if primal.dim() == 1:
        return primal.double() + h * direction.double()
    return primal + h * direction


def choose(
    provides: frozenset[str], probe: Callable[[Tangents], object] | None = None, *, checkpointing: bool = False
) -> Tangents:
    """The mode for a run: what the backbone declares, held against one trial call.

    Args:
        provides: the backbone's declared capabilities.
        probe: runs the objective's loss once on a small batch with the given ``Tangents``; whatever it raises
            under forward mode leads to finite differences with that reason.
        checkpointing: activation checkpointing is on, which works only in two passes.
    """
    if "jvp" not in provides:
        return Tangents("finite-difference", reason="the backbone does not provide 'jvp'")
    wanted = (
        Tangents("two-pass", reason="activation checkpointing is on")
        if checkpointing
        else Tangents("one-pass", reason="the backbone provides 'jvp'")
    )
    if probe is None:
        return wanted
    try:
        probe(wanted)
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        return Tangents("finite-difference", reason=f"forward mode failed: {first}")
    return wanted
