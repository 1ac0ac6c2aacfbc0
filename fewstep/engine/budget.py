"""What a run costs, in evaluations of the backbone: samples, not calls, counted by forward hooks.

Networks count if they are a ``Backbone`` or contain one (such as a discriminator on its features). Others, such as a
small head, cost next to nothing in comparison and are not counted.

* ``forward``: plain forward passes.
* ``tangent``: forward passes that carry a derivative, at about twice the cost.
* ``backward``: backward passes through an evaluation, at about twice the cost of the forward pass.

A guided teacher evaluates its network twice and counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from fewstep.core.backbone import Backbone
from fewstep.core.layout import Layout
from fewstep.ops.inputs import carries_tangent

Counts = dict[str, dict[str, int]]
COST = {"forward": 1, "tangent": 2, "backward": 2}  # in forward passes


def evaluations(counts: Mapping[str, Mapping[str, float]]) -> float:
    """The evaluations of all networks in units of a forward pass."""
    return sum(COST[kind] * count for kinds in counts.values() for kind, count in kinds.items())


class Budget:
    """Evaluations by network name and kind."""

    def __init__(self) -> None:
        self.counts: Counts = {}
        self._pending: list[tuple[str, int]] = []

    def watch(self, name: str, module: nn.Module) -> None:
        """Count the evaluations of this network's backbones under ``name``. An EMA counts under its network's name."""
        self.counts.setdefault(name, {"forward": 0, "tangent": 0, "backward": 0})
        for backbone in backbones(module):
            backbone.register_forward_hook(partial(self._seen, name), with_kwargs=True)

    def _seen(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        values = [*args, *kwargs.values()]
        samples = _samples(values)
        if carries_tangent(*(v for v in values if isinstance(v, Tensor))):
            self.counts[name]["tangent"] += samples
            self._pending.append((name, samples))
            return
        self.counts[name]["forward"] += samples
        if graph := [value for value in _tensors(out) if value.requires_grad]:
            # Called once per backward pass, whichever output (the velocity or features) it comes through first.
            register_multi_grad_hook(graph, partial(self._passed, [(name, samples)]), mode="any")

    def attach(self, value: Tensor, carries_graph: bool) -> None:
        """Count a backward pass through the value of ``torch.func.jvp``, inside which no hook can be set."""
        pending, self._pending = self._pending, []
        if carries_graph and value.requires_grad:
            value.register_hook(partial(self._passed, pending))

    def _passed(self, evaluations: list[tuple[str, int]], gradient: Tensor) -> None:
        for name, samples in evaluations:
            self.counts[name]["backward"] += samples

    def reset(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """Start from 0, or from a checkpoint's counts."""
        self._pending = []
        for name, kinds in self.counts.items():
            kinds.update({kind: int((counts or {}).get(name, {}).get(kind, 0)) for kind in kinds})

    def add(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add what was spent earlier. Counts of a network that is not watched here are added to the student's."""
        for name, kinds in counts.items():
            for kind, count in kinds.items():
                self.counts[name if name in self.counts else "student"][kind] += count

    def snapshot(self) -> Counts:
        """A copy of the counts."""
        return {name: dict(kinds) for name, kinds in self.counts.items()}


def backbones(module: nn.Module) -> list[Backbone]:
    """The module itself if it is a backbone, else the outermost backbones inside it."""
    if isinstance(module, Backbone):
        return [module]
    return [backbone for child in module.children() for backbone in backbones(child)]


def _tensors(out: Any) -> list[Tensor]:
    """The tensors that a network returned, alone or in tuples, lists and mappings."""
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _samples(values: list[Any]) -> int:
    """The samples of a call: by the layout that a backbone is given, else the length of the first tensor."""
    for value in values:
        if isinstance(value, Layout):
            return value.batch_size
    return next((len(v) for v in values if isinstance(v, Tensor) and v.dim()), 1)
