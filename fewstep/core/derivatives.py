"""Directional derivatives of a network: by forward mode in one pass or two, or by finite differences.

``torch.func.jvp`` is used and never ``torch.autograd.functional.jvp``, which silently returns 0 through an
``autograd.Function`` without a double backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.layout import Dense, Layout
from fewstep.errors import FewstepError

Mode = Literal["one-pass", "two-pass", "finite-difference"]
Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Tangents:
    """A way to differentiate.

    Args:
        mode: "one-pass" computes value and tangent together; "two-pass" computes the tangent under ``no_grad`` and the
            value by an ordinary forward pass (activation checkpointing needs it); "finite-difference" is second-order
            accurate.
        step: distance h of the finite difference, in units of the tangent.
        reason: why this mode, for the run's log.
    """

    mode: Mode = "one-pass"
    step: float = 5e-3
    reason: str = "default"

    def __call__(
        self,
        f: Function,
        primals: Tensors,
        tangents: Tensors,
        layout: Layout | None = None,
        edges: tuple[float, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """(f(*primals) with its graph, detached tangent of f along ``tangents``); see ``Step.jvp``."""
        if self.mode == "one-pass":
            both = torch.func.jvp(f, primals, tangents)  # torch's annotation is a union of two lengths: not unpacked
            return both[0], both[1].detach()
        if self.mode == "finite-difference":
            return finite_difference(f, primals, tangents, self.step, layout, edges)
        with torch.no_grad():
            tangent = torch.func.jvp(f, primals, tangents)[1]
        return f(*primals), tangent


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """torch's random state on the CPU and this device is as before at the end of the block. On a machine of several
    GPUs torch would save that of all, and warn."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def finite_difference(
    f: Function,
    primals: Tensors,
    tangents: Tensors,
    h: float,
    layout: Layout | None = None,
    edges: tuple[float, ...] = (),
) -> tuple[Tensor, Tensor]:
    """f(*primals) with its graph, and its derivative along ``tangents`` from two more evaluations.

    The derivative of the parabola through f(0), f(a) and f(b), the values at distances 0, a and b along the tangents:

        f'(0) = b / (a (b - a)) [f(a) - f(0)] - a / (b (b - a)) [f(b) - f(0)] + O(h^2)

    For each sample (a, b) is (h, -h), the central difference, unless a time ([B] primal) would leave [0, 1] or cross
    one of the ``edges``: then (h, 2h) or (-h, -2h). Times are moved in float64: t - h in float32 would make a rounding
    error that the division magnifies. All evaluations see the same random state.

    Raises:
        FewstepError: for packed states without their ``layout``.
    """
    a_B, b_B = _offsets(primals, tangents, h, edges)

    def moved(offset_B: Tensor) -> Tensor:
        at = []
        for primal, direction in zip(primals, tangents, strict=True):
            if primal.dim() == 1:
                at.append(primal.double() + offset_B * direction.double())
            else:
                at.append(primal + _expand(offset_B, primal, layout) * direction)
        with forked_rng(primals[0].device):
            return f(*at)

    with torch.no_grad():
        at_a, at_b = moved(a_B), moved(b_B)
    value = f(*primals)
    here = value.detach()
    weight_a, weight_b = b_B / (a_B * (b_B - a_B)), a_B / (b_B * (b_B - a_B))
    slope = _expand(weight_a, here, layout) * (at_a - here) - _expand(weight_b, here, layout) * (at_b - here)
    return value, slope


def _offsets(primals: Tensors, tangents: Tensors, h: float, edges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """[B] distances (a, b) for each sample, in float64."""
    times = [(p.double(), d.double()) for p, d in zip(primals, tangents, strict=True) if p.dim() == 1]
    count, device = len(primals[0]) if not times else len(times[0][0]), primals[0].device
    a_B = torch.full((count,), h, dtype=torch.float64, device=device)
    b_B = -a_B
    forward, backward = (torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2))
    for t, d in times:
        forward |= _beyond(t, t - h * d, edges)
        backward |= _beyond(t, t + h * d, edges)
    a_B = torch.where(backward, -a_B, a_B)
    return a_B, torch.where(forward | backward, 2 * a_B, b_B)


def _beyond(t_B: Tensor, moved_B: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Whether moving a time from ``t_B`` to ``moved_B`` leaves [0, 1] or crosses an edge."""
    beyond = (moved_B < 0) | (moved_B > 1)
    for edge in edges:
        beyond |= (t_B - edge) * (moved_B - edge) < 0
    return beyond


def _expand(v_B: Tensor, like: Tensor, layout: Layout | None) -> Tensor:
    if layout is not None:
        return layout.expand(v_B, like)
    if len(like) != len(v_B):
        raise FewstepError(f"step.jvp: finite differences on packed states {list(like.shape)} need layout=batch.layout")
    return Dense(len(v_B)).expand(v_B, like)
