"""The trained networks of a run: made from the teacher, switched by phase, averaged."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.objective import Nets, NetSpec
from fewstep.errors import FewstepError, unknown

SPREAD = 2654435761  # torch's CPU generator reads 32 bits of a seed: runs must differ within them

HALF = (torch.float16, torch.bfloat16)


def warmed(rate: float, updates: int) -> float:
    """The decay of an average at its update number ``updates`` (from 1): a young average forgets faster."""
    return min(rate, (1 + updates) / (10 + updates))


class Networks:
    """What an objective's ``networks()`` asks for, on one device.

    Args:
        specs: trained networks by name. Each is a copy of the teacher's network, of an earlier one (``init`` names
            it), or made by ``build``; half-precision weights become float32 through ``Module.float``.
        teacher: already on ``device``.
        averages: rates of the student's averages beside those of its spec.
        seed: of the weights that ``build`` draws.

    Raises:
        FewstepError: for an ``init`` that names no network, without a "student", or without parameters to train.
    """

    def __init__(
        self,
        specs: Mapping[str, NetSpec],
        teacher: Teacher,
        device: torch.device,
        averages: tuple[float, ...] = (),
        seed: int = 0,
    ) -> None:
        if "student" not in specs:
            raise unknown("network to export", "student", specs)
        self.specs, self.teacher, self.device = dict(specs), teacher, device
        self.trained: dict[str, nn.Module] = {}
        for name, spec in specs.items():
            self.trained[name] = self._make(name, spec, seed)
        self.averages = {
            (name, rate): copy.deepcopy(self.trained[name]).eval().requires_grad_(False)
            for name, spec in specs.items()
            for rate in dict.fromkeys(spec.ema + (averages if name == "student" else ()))
        }
        self.updates = dict.fromkeys(specs, 0)
        self.view = Nets({"teacher": teacher, **self.trained}, self.averages)

    def _make(self, name: str, spec: NetSpec, seed: int) -> nn.Module:
        torch.manual_seed((seed * SPREAD ^ zlib.crc32(f"build/{name}".encode())) % 2**32)
        if spec.build is not None:
            module = spec.build(self.teacher.backbone)
        elif spec.init == "teacher":
            module = self.teacher.backbone.student()
        elif spec.init in self.trained:
            module = copy.deepcopy(self.trained[spec.init])
        else:
            raise unknown(f"init of network {name!r}", spec.init, ("teacher", *self.trained))
        if not any(True for _ in module.parameters()):
            raise FewstepError(f"network {name!r} has nothing to train: a {type(module).__name__} without parameters")
        if any(p.dtype in HALF for p in module.parameters()):
            module = module.float()
        return module.to(self.device).train().requires_grad_(True)

    def select(self, trains: tuple[str, ...]) -> None:
        """Let gradients reach these networks alone."""
        for name in trains:
            if name not in self.trained:
                raise unknown("network in phase.trains", name, self.trained)
        for name, module in self.trained.items():
            module.requires_grad_(name in trains)

    @torch.no_grad()
    def average(self, trains: tuple[str, ...]) -> None:
        """Move the averages of the networks that were just updated; buffers are copied."""
        for name in trains:
            self.updates[name] += 1
        for (name, rate), module in self.averages.items():
            if name in trains:
                weight = 1 - warmed(rate, self.updates[name])
                for kept, new in zip(module.parameters(), self.trained[name].parameters(), strict=True):
                    kept.lerp_(new, weight)
                for buffer, value in zip(module.buffers(), self.trained[name].buffers(), strict=True):
                    buffer.copy_(value)

    def exported(self, which: float | str) -> Backbone:
        """The student's own weights, or its average at this rate.

        Raises:
            FewstepError: for a rate without an average.
        """
        module = self.trained["student"] if which == "student" else self.averages.get(("student", float(which)))
        if module is None:
            rates = [str(rate) for name, rate in self.averages if name == "student"]
            accepted = ", ".join(["student", *rates])
            raise FewstepError(f"train.export: got {which!r}; accepted: {accepted} (averages come from train.ema)")
        if not isinstance(module, Backbone):
            raise TypeError(f"the student is a {type(module).__name__}, and only a Backbone can be exported")
        return module

    def state(self) -> dict[str, Tensor]:
        """All weights and buffers by ``net/<name>/...`` and ``ema/<name>@<rate>/...``."""
        return {f"{prefix}/{key}": value for prefix, module in self._modules() for key, value in _tensors(module)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``; names, shapes and types must match.

        Raises:
            FewstepError: naming the first tensors that do not.
        """
        own = self.state()
        wrong = [key for key in own if key not in state or not _alike(own[key], state[key])]
        wrong += sorted(set(state) - set(own))
        if wrong:
            shown = ", ".join(_compared(key, own, state) for key in wrong[:3])
            raise FewstepError(f"{len(wrong)} tensors do not fit this run's networks: {shown}")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])

    def _modules(self) -> list[tuple[str, nn.Module]]:
        trained = [(f"net/{name}", module) for name, module in self.trained.items()]
        return trained + [(f"ema/{name}@{rate}", module) for (name, rate), module in self.averages.items()]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in module.state_dict().items() if isinstance(value, Tensor)]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _compared(key: str, own: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    texts = [f"{list(t[key].shape)} {t[key].dtype}" if key in t else "nothing" for t in (got, own)]
    return f"{key}: got {texts[0]}, accepted {texts[1]}"
