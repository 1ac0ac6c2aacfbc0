"""Velocity fields and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.joined import joined_conditions, joined_layouts
from fewstep.core.layout import Layout, Packed

FEW = 2**17  # numbers in x: four structure latents of TRELLIS, eight channels on 16 x 16 x 16 cells each
_sampling: ContextVar[bool] = ContextVar("sampling", default=False)


class VelocityField(Protocol):
    """Anything with a velocity: a student, a guided teacher, a closed form.

    ``t_B`` [B] in [0, 1] is the time of x. ``s_B`` [B], at most ``t_B``, is the time that a two-time student jumps to;
    it returns the average velocity between the two. None asks for the velocity at ``t_B`` itself. A backbone that
    provides "negative_time" takes times in [-1, 1] and tells -t from t: a second velocity at the same place. The
    student of one that provides "policy" takes several targets at once, ``s_B`` [K, B], and returns [K, ...] from one
    pass.
    """

    def __call__(
        self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance u + g (c - u); g = 1 is the plain conditional prediction, one evaluation.

    Outside ``interval`` (which includes both ends) the conditional prediction is used alone. ``rescale`` undoes a share
    of what guidance does to the spread of the predicted data, see ``rescaled``. With ``always`` the unconditional pass
    is made even if no sample's time lies in the interval, because processes must call a sharded network equally often.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    always: bool = False

    @classmethod
    def strength(cls, w: float, interval: tuple[float, float] = (0.0, 1.0)) -> Guidance:
        """Guidance by the strength w of TRELLIS and MDT-dist, (1 + w) c - w u: w = 0 is no guidance."""
        return cls(1.0 + w, interval)

    @property
    def edges(self) -> tuple[float, ...]:
        """The times inside (0, 1) at which the guided velocity jumps."""
        return () if self.scale == 1.0 else tuple(t for t in self.interval if 0.0 < t < 1.0)

    def active(self, t: float) -> bool:
        """Whether the unconditional pass is needed at time t."""
        return self.scale != 1.0 and self.interval[0] <= t <= self.interval[1]

    def idle(self, t_B: Tensor) -> bool:
        """Whether the unconditional pass is needed at none of the times [B]."""
        if self.scale == 1.0:
            return True
        if self.always or (self.interval[0] <= 0.0 and self.interval[1] >= 1.0):  # known without reading the device
            return False
        return not bool(self._inside(t_B).any())

    def of(
        self,
        field: VelocityField,
        x: Tensor,
        t_B: Tensor,
        cond: Condition,
        layout: Layout,
        s_B: Tensor | None = None,
        interpolant: Interpolant | None = None,
    ) -> Tensor:
        """The guided velocity of a field, from one evaluation or two; ``interpolant`` is the field's, for
        ``rescale``."""
        if self.idle(t_B) or cond.tokens is None:
            return field(x, t_B, cond, layout, s_B=s_B)
        return self.combined(*both(field, x, t_B, cond, layout, s_B), x, t_B, layout, interpolant)

    def combined(
        self,
        positive: Tensor,
        negative: Tensor,
        x: Tensor,
        t_B: Tensor,
        layout: Layout,
        interpolant: Interpolant | None = None,
    ) -> Tensor:
        """The guided velocity at ``x`` from the two velocities that ``both`` returns."""
        guided = self.guided(positive, negative, t_B, layout)
        return self.rescaled(guided, positive, x, t_B, layout, interpolant or Interpolant())

    def guided(self, positive: Tensor, negative: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """positive + (g - 1) (positive - negative) inside the interval, positive outside."""
        extra_B = torch.where(self._inside(t_B), self.scale - 1.0, 0.0)
        return positive + layout.expand(extra_B, positive) * (positive - negative)

    def rescaled(
        self, guided: Tensor, positive: Tensor, x: Tensor, t_B: Tensor, layout: Layout, interpolant: Interpolant
    ) -> Tensor:
        """``guided``, with the data x0 that it predicts from ``x`` scaled towards the spread of the conditional x0.

        x0 is multiplied by 1 + f (std / std' - 1) with the standard deviations over each sample's elements, std of the
        conditional x0 and std' of the guided one, and f = ``rescale`` (Lin et al., arXiv 2305.08891, section 3.4). Only
        their ratio matters, so they may be biased. Nothing changes outside the interval or for a scale of 0.
        """
        if self.rescale == 0.0 or self.scale == 0.0:
            return guided
        data, wanted = (interpolant.x0(x, v, t_B, layout) for v in (guided, positive))
        std_B, wanted_B = (layout.mean((z - layout.expand(layout.mean(z), z)).square()).sqrt() for z in (data, wanted))
        excess_B = torch.where(self._inside(t_B) & (std_B > 0), self.rescale * (1 - wanted_B / std_B), 0.0)
        s = interpolant.sigma_min
        return guided + layout.expand(excess_B / (s + (1 - s) * t_B).clamp(min=1e-12), x) * data

    def _inside(self, t_B: Tensor) -> Tensor:
        return (t_B >= self.interval[0]) & (t_B <= self.interval[1])


UNGUIDED = Guidance()


def both(
    field: VelocityField, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, s_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The velocities under the condition and under its negative: from one call of the field on the doubled batch if
    ``one_pass`` says so and both conditions fit into one batch, else from two calls."""
    negative = cond.negative()
    if not (one_pass(x) and _fit(cond, negative)):
        return field(x, t_B, cond, layout, s_B=s_B), field(x, t_B, negative, layout, s_B=s_B)

    def doubled() -> Layout:
        return joined_layouts([layout, layout])

    # Kept with the layout: neighbour maps, windows and the like are made once for all steps.
    twice = layout.once("twice", doubled) if isinstance(layout, Packed) else doubled()
    x, t_B = torch.cat([x, x]), torch.cat([t_B, t_B])
    s_B = None if s_B is None else torch.cat([s_B, s_B])
    first, second = field(x, t_B, joined_conditions([cond, negative]), twice, s_B=s_B).chunk(2)
    return first, second


def one_pass(x: Tensor) -> bool:
    """Whether a guided velocity at ``x`` is better computed by one call of the field on twice the samples.

    On a small batch a GPU waits for the host, and one call costs the host half as much as two. Elsewhere memory would
    double for nothing, and the TRELLIS networks could not skip cross attention where all tokens are 0. Never in
    training: all processes must call a sharded network equally often, however many rows each has.
    """
    return _sampling.get() and x.is_cuda and x.numel() <= FEW


@contextmanager
def sampling() -> Iterator[None]:
    """Marks the evaluations inside as those of a sampler, which need no gradients."""
    before = _sampling.set(True)
    try:
        yield
    finally:
        _sampling.reset(before)


def _fit(cond: Condition, negative: Condition) -> bool:
    """Whether both fit into one batch; a derived class may hold tensors that cannot be concatenated by sample."""
    a, b = cond.tokens, negative.tokens
    return type(cond) is Condition and a is not None and b is not None and a.shape == b.shape
