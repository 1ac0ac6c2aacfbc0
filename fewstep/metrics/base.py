"""What every quality measure offers, and the two ways of collecting batches for one."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.core.layout import Layout
from fewstep.errors import FewstepError, invalid


class Metric(Protocol):
    """A measure that is fed batch by batch; a plugin registers a class that is constructed without arguments."""

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    def update(self, generated: Tensor, reference: Tensor, layout: Layout) -> None:
        """Take a batch of generated samples and as many reference samples, both in ``layout``."""

    def compute(self) -> dict[str, float]:
        """The measures by name, over everything taken so far."""


class PerSample:
    """A metric that is the mean of one value a sample. A subclass implements ``values``."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __init__(self) -> None:
        self.collected: list[Tensor] = []

    def values(self, generated: Tensor, reference: Tensor, layout: Layout) -> Tensor:
        """[B] values of a batch."""
        raise NotImplementedError

    def update(self, generated: Tensor, reference: Tensor, layout: Layout) -> None:
        self.collected.append(self.values(generated, reference, layout).double().cpu())

    def compute(self) -> dict[str, float]:
        """Raises FewstepError where nothing was taken."""
        return {self.name: float(torch.cat(taken(self.name, self.collected)).mean())}


class PerSet:
    """A metric between two sets of vectors. A subclass implements ``distance`` on [N, F] and [M, F]."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        self.generated: list[Tensor] = []
        self.reference: list[Tensor] = []

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        """The distance of all that was taken."""
        raise NotImplementedError

    def update(self, generated: Tensor, reference: Tensor, layout: Layout) -> None:
        del layout
        self.generated.append(generated.flatten(1).detach().cpu())
        self.reference.append(reference.flatten(1).detach().cpu())

    def compute(self) -> dict[str, float]:
        """Raises FewstepError where nothing was taken."""
        taken(self.name, self.generated)
        return {self.name: self.distance(torch.cat(self.generated), torch.cat(self.reference))}


def taken(name: str, collected: list[Tensor]) -> list[Tensor]:
    """``collected``. Raises FewstepError where it is empty."""
    if not collected:
        raise FewstepError(f"metric {name!r}: nothing to compute; call update first")
    return collected


def vectors(generated: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64.

    Raises:
        FewstepError: unless they are [N, F] and [M, F] with at least ``least`` rows, and finite.
    """
    for key, x in (("generated", generated), ("reference", reference)):
        if x.dim() != 2 or len(x) < least or x.shape[1] != reference.shape[-1]:
            raise invalid(key, tuple(x.shape), f"[N, {reference.shape[-1]}] with N at least {least}")
        if not bool(x.isfinite().all()):
            raise FewstepError(f"{key}: holds values that are not finite; accepted: finite numbers")
    return generated.double(), reference.double()
