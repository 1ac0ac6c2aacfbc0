"""``Sum``: an objective that is the sum of others on the same batch; ``sum_of`` makes one of registered methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from fewstep.config.combined import config_of
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset
from fewstep.core.objective import C, Nets, NetSpec, Objective, Phase, Step
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry


class Sum(Objective[C]):
    """The sum of several objectives. Draws of the same name are shared between them.

    Networks of the same name are one network with the EMA rates of all; ``needs`` is the union. Loss terms of the same
    name are prefixed with the class of their objective, ``Consistency/fit``, and numbered from 1 where several
    objectives are of that class, ``Consistency1/fit``.

    Args:
        config: of the sum itself.
        objectives: the summands.

    Raises:
        FewstepError: from ``networks``, ``contract`` and ``phase``, where the objectives cannot agree.
    """

    def __init__(self, config: C, objectives: Sequence[Objective[Any]]) -> None:
        super().__init__(config)
        self.objectives = list(objectives)
        self.needs = type(self).needs.union(*(objective.needs for objective in objectives))  # type: ignore[misc]

    def networks(self) -> dict[str, NetSpec]:
        merged: dict[str, NetSpec] = {}
        for objective in self.objectives:
            for name, spec in objective.networks().items():
                merged[name] = _merged(name, merged.get(name, spec), spec)
        return merged

    def check(self, train: TrainConfig) -> None:
        for objective in self.objectives:
            objective.check(train)

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        """The data set passed through ``data`` of each objective in turn."""
        for objective in self.objectives:
            dataset = objective.data(dataset, teacher)
        return dataset

    def contract(self) -> Contract:
        """The contract that all objectives share. A subclass may decide otherwise."""
        contracts = [objective.contract() for objective in self.objectives]
        self._check_equal(contracts, "their students are sampled differently")
        return contracts[0]

    def phase(self, step: int) -> Phase:
        """All objectives at once; they must train the same networks at this step."""
        phases = [objective.phase(step) for objective in self.objectives]
        self._check_equal([sorted(phase.trains) for phase in phases], f"they train different networks at step {step}")
        return Phase(phases[0].trains, copies=tuple(pair for phase in phases for pair in phase.copies))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        losses = [getattr(part, step.decide(part.phase).loss)(batch, nets, step) for part in self.objectives]
        shared = {name for name, count in Counter(name for terms in losses for name in terms).items() if count > 1}
        return {
            f"{label}/{name}" if name in shared else name: term
            for label, terms in zip(self._labels(), losses, strict=True)
            for name, term in terms.items()
        }

    def _labels(self) -> list[str]:
        classes = [type(objective).__name__ for objective in self.objectives]
        return [
            name if classes.count(name) == 1 else f"{name}{classes[: i + 1].count(name)}"
            for i, name in enumerate(classes)
        ]

    def _check_equal(self, values: Sequence[object], why: str) -> None:
        for objective, value in zip(self.objectives, values, strict=True):
            if value != values[0]:
                pair = f"{type(self.objectives[0]).__name__} and {type(objective).__name__}"
                raise FewstepError(f"{type(self).__name__}: {pair} cannot be summed, {why}: {values[0]}, {value}")


class Methods(Sum[Any]):
    """The sum of registered methods that ``--method cm+dmd2`` names; ``sum_of`` makes the class of such a sum.

    The terms of a part are multiplied by its weight and take part from its start on. An iteration trains the networks
    of every part that has begun. The contract is that of the first part.
    """

    parts: ClassVar[tuple[Entry, ...]]

    def __init__(self, config: Any) -> None:
        super().__init__(config, [part.load()(getattr(config, part.name)) for part in self.parts])
        kinds = ["a target time" if "two_time" in part.needs else "no target time" for part in self.objectives]
        self._check_equal(kinds, "only one of their students takes a target time")
        at_once = [part for part in self.parts if getattr(config.starts, part.name) == 0]
        if not any(getattr(config.weights, part.name) for part in at_once):
            raise FewstepError("objective.weights, objective.starts: no method with a weight above 0 begins at 0")

    def contract(self) -> Contract:
        return self.objectives[0].contract()

    def phase(self, step: int) -> Phase:
        phases = [objective.phase(step) for objective in self.objectives]
        trains = dict.fromkeys(name for phase in phases for name in phase.trains)
        return Phase(tuple(trains), copies=tuple(pair for phase in phases for pair in phase.copies))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for part, objective in zip(self.parts, self.objectives, strict=True):
            start, weight = getattr(self.config.starts, part.name), getattr(self.config.weights, part.name)
            begins = start * step.total if 0 < start < 1 else start
            if weight == 0 or step.decide(lambda index, begins=begins: index < begins):  # type: ignore[misc]
                continue
            losses = getattr(objective, step.decide(objective.phase).loss)(batch, nets, step)
            terms |= {f"{part.name}/{name}": weight * term for name, term in losses.items()}
        return terms


def sum_of(parts: Sequence[Entry]) -> type[Methods]:
    """The class of the sum of these registered methods, with the needs and config keys of all."""
    needs = frozenset[str]().union(*(part.load().needs for part in parts))
    members = {"parts": tuple(parts), "needs": needs, "Config": config_of(parts), "__doc__": Methods.__doc__}
    return type("+".join(part.name for part in parts), (Methods,), members)


def _merged(name: str, a: NetSpec, b: NetSpec) -> NetSpec:
    for key in ("init", "lr_scale", "betas", "weight_decay", "build", "frozen"):
        first, second = getattr(a, key), getattr(b, key)
        if first != second:
            raise FewstepError(f"network {name!r}: summed objectives disagree about its {key}: {first!r}, {second!r}")
    return replace(a, ema=tuple(dict.fromkeys(a.ema + b.ema)))
