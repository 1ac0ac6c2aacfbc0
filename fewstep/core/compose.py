"""``Sum``: an objective that is the sum of others on the same batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset
from fewstep.core.objective import C, Nets, NetSpec, Objective, Phase, Step
from fewstep.errors import FewstepError


class Sum(Objective[C]):
    """The sum of several objectives. Draws of the same name are shared between them.

    Networks of the same name are one network with the EMA rates of all; needs add up. Where two objectives return a
    loss term of the same name, both are prefixed by their class: ``Consistency/fit``, and by a number from 1 where two
    are of one class: ``Consistency1/fit``.

    Args:
        config: of the sum.
        objectives: the summands.

    Raises:
        FewstepError: from ``networks``, ``contract`` and ``phase``, where the objectives cannot agree.
    """

    def __init__(self, config: C, objectives: Sequence[Objective[Any]]) -> None:
        super().__init__(config)
        self.objectives = list(objectives)
        self.needs = type(self).needs.union(*(one.needs for one in objectives))  # type: ignore[misc]

    def networks(self) -> dict[str, NetSpec]:
        merged: dict[str, NetSpec] = {}
        for one in self.objectives:
            for name, spec in one.networks().items():
                merged[name] = _merged(name, merged.get(name, spec), spec)
        return merged

    def check(self, train: TrainConfig) -> None:
        for one in self.objectives:
            one.check(train)

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        """As the objectives want it, one after another."""
        for one in self.objectives:
            dataset = one.data(dataset, teacher)
        return dataset

    def contract(self) -> Contract:
        """The contract that all objectives share. A subclass may decide otherwise."""
        contracts = [one.contract() for one in self.objectives]
        self._check_equal(contracts, "their students are sampled differently")
        return contracts[0]

    def phase(self, step: int) -> Phase:
        """All objectives at once, which needs that they train the same networks at this step."""
        phases = [one.phase(step) for one in self.objectives]
        self._check_equal([sorted(one.trains) for one in phases], f"they train different networks at step {step}")
        return Phase(phases[0].trains, copies=tuple(pair for one in phases for pair in one.copies))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        found = [getattr(one, one.phase(step.index).loss)(batch, nets, step) for one in self.objectives]
        shared = {name for name, count in Counter(name for terms in found for name in terms).items() if count > 1}
        return {
            f"{label}/{name}" if name in shared else name: term
            for label, terms in zip(self._labels(), found, strict=True)
            for name, term in terms.items()
        }

    def _labels(self) -> list[str]:
        classes = [type(one).__name__ for one in self.objectives]
        return [
            name if classes.count(name) == 1 else f"{name}{classes[: i + 1].count(name)}"
            for i, name in enumerate(classes)
        ]

    def _check_equal(self, values: Sequence[object], why: str) -> None:
        for one, value in zip(self.objectives, values, strict=True):
            if value != values[0]:
                pair = f"{type(self.objectives[0]).__name__} and {type(one).__name__}"
                raise FewstepError(f"{type(self).__name__}: {pair} cannot be summed, {why}: {values[0]}, {value}")


def _merged(name: str, a: NetSpec, b: NetSpec) -> NetSpec:
    for key in ("init", "lr_scale", "build", "frozen"):
        one, other = getattr(a, key), getattr(b, key)
        if one != other:
            raise FewstepError(f"network {name!r}: summed objectives disagree about its {key}: {one!r}, {other!r}")
    return NetSpec(a.init, a.lr_scale, tuple(dict.fromkeys(a.ema + b.ema)), a.build, a.frozen)
