"""One trial iteration of an objective: its loss, its gradients, and the services it used."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch
from fewstep.core.derivatives import Function, Mode, Tangents, Tensors
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Layout
from fewstep.core.objective import Objective, Phase, Step, means
from fewstep.engine.networks import Networks
from fewstep.plugins.registry import registry
from fewstep.testing.backbones import CAPABILITIES
from fewstep.testing.tiny import TinyBackbone, tiny_batch

ROUNDING = 1e-6  # of times
TOTAL = 100  # iterations of the run that the trial pretends to be part of


@dataclass(frozen=True)
class Spy(Tangents):
    """A ``Tangents`` that remembers whether it was used."""

    calls: list[str] = field(default_factory=list)

    def __call__(
        self,
        f: Function,
        primals: Tensors,
        tangents: Tensors,
        layout: Layout | None = None,
        edges: tuple[float, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        self.calls.append(self.mode)
        return super().__call__(f, primals, tangents, layout, edges)


@dataclass
class Trial:
    """The outcome: gradients by trained network, the services used, and ``flat``, the total loss and all gradients in
    one vector."""

    gradients: dict[str, Tensor]
    used: set[str]
    flat: Tensor


class Bench:
    """An objective with a teacher, a student that differs from it, and a batch."""

    def __init__(
        self, cls: type[Objective[Any]], config: Strict | None, backbone: Backbone | None, batch: Batch | None
    ) -> None:
        self.name = cls.__name__
        self.config = cls.Config() if config is None else config
        again = type(self.config).model_validate(self.config.model_dump(mode="json"))
        self.claim(again == self.config, "its config does not survive a round trip through JSON")
        self.objective = cls(self.config)
        self.needs = self.objective.needs
        self.backbone = backbone or TinyBackbone()
        self.batch = batch or tiny_batch()
        provided = self.backbone.provides | {"jvp"}
        if batch is not None:  # what is not a capability of networks is a need of the data
            provided |= self.needs - CAPABILITIES
        missing = sorted(self.needs - provided)
        text = f"it needs {', '.join(missing)}, which the network does not provide: pass another"
        self.claim(not missing, text + ("" if CAPABILITIES.issuperset(missing) else ", or a batch that holds it"))

    def claim(self, holds: bool, sentence: str) -> None:
        """Raise an AssertionError that names the objective, unless the claim holds."""
        if not holds:
            raise AssertionError(f"{self.name}: {sentence}")

    def sampler_fits(self) -> None:
        """The contract names a registered sampler, which passes a target time where the student takes one."""
        name, samplers = self.objective.contract().sampler, registry().names("sampler")
        self.claim(name in samplers, f"its sampler {name!r} is none of {', '.join(samplers)}")
        passes, takes = registry().get("sampler", name).load().two_time, "two_time" in self.needs
        words = "passes a target time" if passes else "never passes a target time"
        self.claim(passes == takes, f"its sampler {name!r} {words}, and needs {'has' if takes else 'lacks'} 'two_time'")

    def run(
        self,
        index: int,
        phase: Phase,
        *,
        batch: Batch | None = None,
        outside: int = 0,
        mode: Mode = "one-pass",
        width: float = 1e-4,
        bfloat16: bool = False,
    ) -> Trial:
        """The phase's loss and its gradients.

        Args:
            outside: seed of torch's global generator, which an objective must not use.
            width: half-width of the finite difference.
            bfloat16: float32 weights under autocast, as with ``train.precision=bf16``; otherwise float64.
        """
        dtype = torch.float32 if bfloat16 else torch.float64
        teacher, nets = self._networks(phase, dtype)
        batch, spy, used = (batch or self.batch).cast(dtype), Spy(mode, step=width), set[str]()

        def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (s_B := kwargs.get("s_B")) is not None:
                used.add("two_time")
                t_B = args[1] if len(args) > 1 else kwargs["t_B"]
                beyond = bool((s_B.abs() > t_B.abs() + ROUNDING).any())  # at negative times, too
                late = beyond and torch.is_grad_enabled() and mode == "one-pass"  # finite differences move the times
                self.claim(not late, f"{phase.loss}() asks the student for s_B above t_B: a jump ends at s <= t")

        nets.trained["student"].register_forward_pre_hook(look, with_kwargs=True)
        modules, x0 = {"teacher": teacher, **nets.trained}, batch.x0
        found = callable(getattr(self.objective, phase.loss, None))
        self.claim(found, f"a phase names the loss {phase.loss!r}, and there is no such method")

        def state() -> dict[str, list[Tensor]]:
            values = {name: module.state_dict().values() for name, module in modules.items()} | {"the batch": [x0]}
            return {name: [value.clone() for value in tensors] for name, tensors in values.items()}

        before = state()
        torch.manual_seed(outside)
        step = Step(index, self.backbone.interpolant, total=TOTAL, tangents=spy)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            terms = getattr(self.objective, phase.loss)(batch, nets.view, step)
        total = self._total(phase, terms, batch)
        total.backward()
        after = state()
        for name, old in before.items():
            same = all(torch.equal(a, b) for a, b in zip(old, after[name], strict=True))
            self.claim(same, f"{phase.loss}() changes {name} in place")
        touched = any(p.grad is not None or p.requires_grad for p in teacher.parameters())
        self.claim(not touched, f"gradients of {phase.loss}() reach the teacher's weights")
        gradients = {
            name: torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters.values()]
            )
            for name, parameters in nets.parameters.items()
            if name in phase.trains
        }
        flat = torch.cat([total.detach().double()[None], *gradients.values()])
        return Trial(gradients, used | {"jvp"} if spy.calls else used, flat)

    def _networks(self, phase: Phase, dtype: torch.dtype) -> tuple[Teacher, Networks]:
        specs = self.objective.networks()
        self.claim("student" in specs, f"networks() has {', '.join(specs) or 'nothing'}; one must be 'student'")
        unknown = sorted(set(phase.trains) - set(specs))
        self.claim(not unknown, f"a phase trains {', '.join(unknown)}, which networks() does not have")
        teacher = Teacher(copy.deepcopy(self.backbone).to(dtype), Guidance(2.0))
        nets = Networks(specs, teacher, torch.device("cpu"), needs=self.needs)
        for module in [*nets.trained.values(), *nets.emas.values()]:  # what ``build`` made is float32
            module.to(dtype)
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
        empty = " (one sample of this batch is empty)" if 0 in getattr(batch.layout, "lengths_list", ()) else ""
        self.claim(not bad, f"{phase.loss}(): the terms {bad} are not finite tensors{empty}")
        sizes = {batch.layout.batch_size, len(batch.x0)}
        odd = [k for k, v in terms.items() if v.dim() and len(v) not in sizes]
        self.claim(not odd, f"{phase.loss}(): the terms {odd} have neither one value per sample nor one per element")
        total = torch.stack(list(means(terms).values())).sum()
        constant = [k for k, v in terms.items() if not v.requires_grad]
        trained = " or ".join(phase.trains)
        self.claim(not constant, f"{phase.loss}(): the terms {constant} have no graph: they do not depend on {trained}")
        return total
