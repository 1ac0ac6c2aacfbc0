"""The trained networks of a run: made from the teacher, selected by phase, with their moving averages (EMA)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.config.train import LoRAConfig
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batching import SPREAD
from fewstep.core.objective import NetSpec
from fewstep.engine.adapters import adapt, is_adapter, put
from fewstep.engine.averages import Averages
from fewstep.engine.parallel import Parallel, placed, unsharded
from fewstep.engine.view import View
from fewstep.errors import FewstepError, unknown

HALF = (torch.float16, torch.bfloat16)


class Networks:
    """What an objective's ``networks()`` asks for, on one device.

    Parameters that a backbone (or ``build``) freezes by ``requires_grad=False`` stay frozen: no gradient, no optimiser
    state. If all parameters of a network are frozen, all are trained instead.

    With ``lora`` the networks that start from the teacher or from one another are trained by adapters. All of them,
    their EMAs and the teacher share the same frozen parameters; where networks are sharded, each has its own.

    Args:
        specs: trained networks by name. Each is a copy of the teacher's network or of an earlier one, as ``init`` says,
            or made by ``build``; half-precision weights become float32.
        teacher: already on ``device``.
        rates: of the student's EMAs, in addition to those of its spec.
        seed: of the weights that ``build`` draws.
        warmup: of the EMAs, see ``ema_decay``.
        needs: of the objective, for ``Backbone.student``.
        lora: the adapters; by default none.
        parallel: how the trained networks are spread over processes; the teacher is sharded elsewhere.

    Raises:
        FewstepError: for an ``init`` that names no network, a missing "student", or a network without parameters.
    """

    def __init__(
        self,
        specs: Mapping[str, NetSpec],
        teacher: Teacher,
        device: torch.device,
        rates: tuple[float, ...] = (),
        seed: int = 0,
        warmup: bool = False,
        needs: frozenset[str] = frozenset(),
        lora: LoRAConfig | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        if "student" not in specs:
            raise unknown("network to export", "student", specs)
        sharded = parallel is not None and parallel.mesh is not None
        self.specs, self.teacher, self.needs = dict(specs), teacher, needs
        self.lora = lora or LoRAConfig()
        self.shared = dict(teacher.backbone.named_parameters()) if self.lora.rank else {}
        place = "cpu" if sharded else device  # networks may not fit before they are sharded
        self.trained: dict[str, nn.Module] = {}
        for name, spec in specs.items():
            module = self._make(name, spec, seed).to(place)
            self.trained[name] = module.eval().requires_grad_(False) if spec.frozen else module
        self.emas = {
            (name, rate): self._copy(name).eval().requires_grad_(False)
            for name, spec in specs.items()
            for rate in dict.fromkeys(spec.ema + (rates if name == "student" else ()))
        }
        shared = {id(parameter) for parameter in self.shared.values()}
        self.unsaved = {key for key, value in self._tensors().items() if id(value) in shared}
        self.shell: Any = None  # for sharded networks: the student without its weights, to export it
        if parallel is not None and sharded:
            self.shell = copy.deepcopy(self.trained["student"]).to("meta")
            for module in [*self.trained.values(), *self.emas.values()]:
                self._unshare(module)
                parallel.shard(module)
                module.to(device)
        self.parameters = {
            name: {key: p for key, p in module.named_parameters() if p.requires_grad}
            for name, module in self.trained.items()
            if not specs[name].frozen
        }
        self.averages = Averages(self.trained, self.emas, warmup)
        self.view = View({"teacher": teacher, **self.trained}, self.emas, device)

    def _make(self, name: str, spec: NetSpec, seed: int) -> nn.Module:
        torch.manual_seed((seed * SPREAD ^ zlib.crc32(f"build/{name}".encode())) % 2**32)
        if spec.build is not None:
            module = spec.build(self._student())
        elif spec.init == "teacher":
            module = self._student()
        elif spec.init in self.trained:
            module = self._copy(spec.init)
        else:
            raise unknown(f"init of network {name!r}", spec.init, ("teacher", *self.trained))
        if not any(True for _ in module.parameters()):
            raise FewstepError(f"network {name!r} has nothing to train: a {type(module).__name__} without parameters")
        if not any(p.requires_grad for p in module.parameters()):
            module.requires_grad_(True)
        if self.lora.rank and spec.build is None:
            if spec.init == "teacher":
                adapt(cast(Backbone, module), self.teacher.backbone, self.lora, self.shared)
        elif any(p.dtype in HALF for p in module.parameters()):
            module = module.float()
        return module.train()

    def _copy(self, name: str) -> nn.Module:
        """A copy of a network that keeps the shared parameters themselves."""
        return copy.deepcopy(self.trained[name], {id(p): p for p in self.shared.values()})

    def _unshare(self, module: nn.Module) -> None:
        """Give a network its own copies of the shared parameters, since in FSDP2 no two networks can share one."""
        for key, parameter in list(module.named_parameters()):
            if parameter is self.shared.get(key):
                put(module, key, nn.Parameter(parameter.detach().clone(), requires_grad=False))

    @torch.no_grad()
    def start_from(self, student: nn.Module) -> None:
        """Give another student's weights to the student, to the networks that start as it does, and to their EMAs.

        Raises:
            FewstepError: for a network of another shape.
        """
        names = ["student"]
        names += [name for name, spec in self.specs.items() if spec.init in names and spec.build is None]
        emas = [module for (name, _), module in self.emas.items() if name in names]
        state = tensors_in(student)
        own = {key: value for key, value in tensors_in(self.trained["student"]).items() if not is_adapter(key)}
        if wrong := unlike(own, state):
            raise FewstepError(f"train.start: {wrong}")
        started: dict[str, nn.Parameter] = {}
        if self.shell is None:
            started = dict(student.requires_grad_(False).named_parameters())
        self.shared.update({key: started[key] for key in self.shared.keys() & started.keys()})
        for module in [*(self.trained[name] for name in names), *emas]:
            for key in self.shared.keys() & started.keys():  # only here: the teacher keeps its own parameters
                put(module, key, started[key])
            for key, tensor in tensors_in(module).items():
                if not is_adapter(key):
                    tensor.copy_(placed(state[key], tensor))

    def _student(self) -> Backbone:
        """The backbone's student. In a copy of the frozen teacher, the parameters that were trainable before it was
        frozen become trainable again; parameters that the student has in addition, or with another shape, keep their
        ``requires_grad``."""
        module = self.teacher.backbone.student(self.needs)
        shapes = {key: p.shape for key, p in self.teacher.backbone.named_parameters()}
        copied = {key: p for key, p in module.named_parameters() if p.shape == shapes.get(key)}
        if not any(p.requires_grad for p in copied.values()):
            for key, parameter in copied.items():
                parameter.requires_grad_(key in self.teacher.trainable)
        return module

    def sizes(self) -> str:
        """In words, how many weights of each network are trained, and of how many."""
        texts = []
        for name, parameters in self.parameters.items():
            trained = sum(p.numel() for p in parameters.values())
            whole = sum(p.numel() for p in self.trained[name].parameters())
            texts.append(f"{name} {trained:,}" + (f" of {whole:,}" if trained < whole else ""))
        return f"trained weights: {', '.join(texts)}"

    def select(self, trains: tuple[str, ...]) -> None:
        """Let gradients reach these networks alone."""
        for name in trains:
            if name not in self.parameters:
                raise unknown("network in phase.trains", name, self.parameters)
        for name, parameters in self.parameters.items():
            for parameter in parameters.values():
                parameter.requires_grad_(name in trains)

    def copy(self, copies: tuple[tuple[str, str], ...]) -> None:
        """Give the first network of each pair the weights and buffers of the second.

        Raises:
            FewstepError: for a name that is not of a trained network.
        """
        for name in (name for pair in copies for name in pair):
            if name not in self.trained:
                raise unknown("network in phase.copies", name, self.trained)
        for to, source in copies:
            self.trained[to].load_state_dict(self.trained[source].state_dict())

    def exported(self, which: float | str) -> Backbone:
        """The network of ``train.export`` as it is written to files. Where networks are sharded, all processes must
        call this, and only the first gets the weights."""
        module = self.chosen(which)
        return module if self.shell is None else unsharded(module, self.shell)

    def chosen(self, which: float | str) -> Backbone:
        """The student, or its EMA at this rate.

        Raises:
            FewstepError: for a rate without an EMA.
        """
        module = self.trained["student"] if which == "student" else self.emas.get(("student", float(which)))
        if module is None:
            rates = [str(rate) for name, rate in self.emas if name == "student"]
            accepted = ", ".join(["student", *rates])
            raise FewstepError(f"train.export: got {which!r}; accepted: {accepted} (rates come from train.ema)")
        if not isinstance(module, Backbone):
            raise TypeError(f"the student is a {type(module).__name__}, and only a Backbone can be exported")
        return module

    def state(self) -> dict[str, Tensor]:
        """All weights and buffers by ``net/<name>/...`` and ``ema/<name>@<rate>/...``, without the frozen ones that
        adapters share."""
        return {key: value.detach() for key, value in self._tensors().items() if key not in self.unsaved}

    def _tensors(self) -> dict[str, Tensor]:
        modules = [(f"net/{name}", module) for name, module in self.trained.items()]
        modules += [(f"ema/{name}@{rate}", module) for (name, rate), module in self.emas.items()]
        return {
            f"{prefix}/{key}": value
            for prefix, module in modules
            for key, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``; names, shapes and types must match.

        Raises:
            FewstepError: naming the first tensors that do not.
        """
        own = self.state()
        if wrong := unlike(own, state):
            raise FewstepError(wrong)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(placed(state[key], tensor))


def tensors_in(module: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a network by name."""
    return {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def unlike(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Which tensors of ``state`` differ from ``own`` in name, shape or type, in words; "" if none does."""
    wanted, got = ({key: f"{list(t.shape)} {t.dtype}" for key, t in table.items()} for table in (own, state))
    wrong = sorted(key for key in {**wanted, **got} if wanted.get(key) != got.get(key))
    shown = [f"{key}: got {got.get(key, 'nothing')}, accepted {wanted.get(key, 'nothing')}" for key in wrong[:3]]
    return f"{len(wrong)} tensors do not fit this run's networks: {', '.join(shown)}" if wrong else ""
