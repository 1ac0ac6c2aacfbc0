"""One loss of an objective on fresh networks, watched: what it returns, draws, calls and changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Guidance, Teacher
from fewstep.core.batch import Batch
from fewstep.core.derivatives import Function, Mode, Tangents, Tensors
from fewstep.core.layout import Layout
from fewstep.core.objective import Objective, Phase, Step, means
from fewstep.engine.networks import Networks
from fewstep.testing.tiny import TinyBackbone, tiny_batch

PHASES, TOTAL = 32, 100  # iterations that are looked through for phases, and the length of the pretended run


@dataclass(frozen=True)
class Spy(Tangents):
    """A ``Tangents`` that remembers whether it was used."""

    calls: list[str] = field(default_factory=list)

    def __call__(
        self, f: Function, primals: Tensors, tangents: Tensors, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        self.calls.append(self.mode)
        return super().__call__(f, primals, tangents, layout)


@dataclass
class Trial:
    """What came out: the total, the gradients by trained network, and which services were used."""

    total: float
    gradients: dict[str, Tensor]
    used: set[str]

    @property
    def flat(self) -> Tensor:
        """The total and all gradients behind one another."""
        return torch.cat([torch.tensor([self.total], dtype=torch.float64), *self.gradients.values()])


class Bench:
    """An objective with a teacher, a student that differs from it, and a batch."""

    def __init__(
        self, cls: type[Objective[Any]], config: Strict | None, backbone: Backbone | None, batch: Batch | None
    ) -> None:
        self.name, self.needs = cls.__name__, cls.needs
        self.config = cls.Config() if config is None else config
        again = type(self.config).model_validate(self.config.model_dump(mode="json"))
        self.claim(again == self.config, "its config does not survive a round trip through JSON")
        self.objective = cls(self.config)
        self.backbone = copy.deepcopy(backbone or TinyBackbone()).double()
        self.batch = batch or tiny_batch()
        missing = sorted(self.needs - self.backbone.provides - {"jvp"})
        self.claim(not missing, f"it needs {', '.join(missing)}, which the network does not provide: pass another")

    def claim(self, holds: bool, sentence: str) -> None:
        """Raises AssertionError, naming the objective."""
        if not holds:
            raise AssertionError(f"{self.name}: {sentence}")

    def phases(self) -> Iterator[tuple[int, Phase]]:
        """The different phases among the first iterations, with the iteration where each first occurs."""
        seen: list[Phase] = []
        for index in range(PHASES):
            phase = self.objective.phase(index)
            if phase not in seen:
                seen.append(phase)
                yield index, phase

    def run(
        self,
        index: int,
        phase: Phase,
        *,
        batch: Batch | None = None,
        outside: int = 0,
        mode: Mode = "one-pass",
        width: float = 1e-4,
    ) -> Trial:
        """The phase's loss and its gradients.

        Args:
            outside: seed of torch's own generator, which an objective has no business with.
            width: half of a finite difference's.
        """
        teacher, nets = self._networks(phase)
        batch, spy, used = batch or self.batch, Spy(mode, step=width), set[str]()
        nets.trained["student"].register_forward_pre_hook(
            lambda _module, _args, kwargs: used.add("two_time") if kwargs.get("s_B") is not None else None,
            with_kwargs=True,
        )
        held = {"teacher": teacher, **nets.trained}
        before = {name: _state(module) for name, module in held.items()} | {"the batch": [batch.x0.clone()]}
        torch.manual_seed(outside)
        terms = getattr(self.objective, phase.loss)(
            batch, nets.view, Step(index, self.backbone.interpolant, 0, 0, TOTAL, spy)
        )
        total = self._total(phase, terms, batch)
        total.backward()
        after = {name: _state(module) for name, module in held.items()} | {"the batch": [batch.x0]}
        for name, old in before.items():
            same = all(torch.equal(a, b) for a, b in zip(old, after[name], strict=True))
            self.claim(same, f"{phase.loss}() changes {name} in place")
        touched = any(p.grad is not None or p.requires_grad for p in teacher.parameters())
        self.claim(not touched, f"gradients of {phase.loss}() reach the teacher's weights")
        return Trial(
            float(total.detach()),
            {n: _gradient(nets.trained[n]) for n in phase.trains},
            used | ({"jvp"} if spy.calls else set()),
        )

    def _networks(self, phase: Phase) -> tuple[Teacher, Networks]:
        specs = self.objective.networks()
        self.claim("student" in specs, f"networks() has {', '.join(specs) or 'nothing'}; one must be 'student'")
        unknown = sorted(set(phase.trains) - set(specs))
        self.claim(not unknown, f"a phase trains {', '.join(unknown)}, which networks() does not have")
        teacher = Teacher(copy.deepcopy(self.backbone), Guidance(2.0))
        nets = Networks(specs, teacher, torch.device("cpu"))
        generator = torch.Generator().manual_seed(1)
        for module in nets.trained.values():  # a student equal to its teacher would hide a loss that is 0 there
            for p in module.parameters():
                p.data.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        nets.select(phase.trains)
        return teacher, nets

    def _total(self, phase: Phase, terms: Any, batch: Batch) -> Tensor:
        fine = isinstance(terms, dict) and len(terms) > 0
        self.claim(fine, f"{phase.loss}() returned {type(terms).__name__}; it must be a dict of named terms")
        bad = [k for k, v in terms.items() if not isinstance(v, Tensor) or not v.isfinite().all()]
        self.claim(not bad, f"{phase.loss}(): the terms {bad} are no finite tensors")
        sizes = {batch.layout.batch_size, len(batch.x0)}
        odd = [k for k, v in terms.items() if v.dim() and len(v) not in sizes]
        self.claim(not odd, f"{phase.loss}(): the terms {odd} have neither a value a sample nor a value an element")
        total = torch.stack(list(means(terms).values())).sum()
        self.claim(
            total.requires_grad, f"{phase.loss}() does not depend on {' or '.join(phase.trains)}: it has no graph"
        )
        return total


def _state(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


def _gradient(module: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in module.parameters()])
