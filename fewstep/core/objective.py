"""Objectives: what a distillation method minimises. A ``Step`` gives them their random draws and derivatives."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.derivatives import Function, Tangents, Tensors
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.times import TimeSampler
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.config.train import TrainConfig
    from fewstep.core.dataset import Dataset

C = TypeVar("C", bound=Strict)
T = TypeVar("T")
Reduction = Literal["element", "sample"]


@dataclass(frozen=True)
class NetSpec:
    """How the engine makes one trained network.

    Args:
        init: "teacher", or the name of an earlier network, whose weights it starts from.
        lr_scale: factor on ``train.lr``.
        betas, weight_decay: of its AdamW; None: those of ``train``.
        ema: decay rates of its exponential moving averages (EMA), each a network of its own.
        build: makes the network instead of ``init``. It is given a copy of the network that the student starts from, to
            keep or to change: for most backbones the teacher's own with its weights, and where the teacher is a closed
            form, the network that was fitted to it.
        frozen: no phase trains it; ``Phase.copies`` renews its weights. It is in evaluation mode.
    """

    init: str = "teacher"
    lr_scale: float = 1.0
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    ema: tuple[float, ...] = ()
    build: Callable[[Backbone], nn.Module] | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Phase:
    """Which networks an iteration trains, and the name of the objective's method that computes the loss.

    A network that the loss does not reach is left as it is. ``copies`` are pairs of names: before the iteration, the
    first network is given the weights of the second.
    """

    trains: tuple[str, ...] = ("student",)
    loss: str = "loss"
    copies: tuple[tuple[str, str], ...] = ()


class Nets:
    """The networks of a run by name: ``nets.student``, ``nets.teacher``; ``nets.ema("student", 0.99)`` for an EMA."""

    def __init__(self, modules: Mapping[str, nn.Module], emas: Mapping[tuple[str, float], nn.Module]) -> None:
        self._modules, self._emas = dict(modules), dict(emas)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name not in modules:
            raise AttributeError(f"no network {name!r}: there are {', '.join(sorted(modules))}")
        return modules[name]

    def ema(self, name: str, rate: float) -> nn.Module:
        """The exponential moving average of a network, at a rate that its NetSpec declares.

        Raises:
            FewstepError: for a rate that was not declared, or an unknown network.
        """
        if (name, rate) not in self._emas:
            declared = ", ".join(f"{network!r} at {rate}" for network, rate in self._emas)
            text = f"{declared or 'none'}; rates are declared in NetSpec(ema=...) and, for the student, in train.ema"
            raise FewstepError(f"nets.ema: got {name!r} at {rate}; accepted: {text}")
        return self._emas[name, rate]


class Step:
    """One iteration's randomness and derivatives.

    Draws are named streams, each seeded by (seed, index, rank, name): two terms of one objective that ask for
    "noise" get the same noise, a resumed run needs no generator state, and adding a draw moves no other.

    Args:
        index: the iteration, from 0.
        interpolant: the backbone's.
        seed: of the run.
        rank: the micro-batch (or process) within the iteration.
        total: iterations of the run.
        tangents: how ``jvp`` differentiates; by default in one pass of forward mode.
        device: of all draws.
        edges: times at which the teacher's velocity jumps, see ``Guidance.edges``. No finite difference crosses one.
    """

    def __init__(
        self,
        index: int,
        interpolant: Interpolant,
        seed: int = 0,
        rank: int = 0,
        total: int = 1,
        tangents: Tangents | None = None,
        device: torch.device | str = "cpu",
        edges: tuple[float, ...] = (),
    ) -> None:
        self.edges = edges
        self._index, self.interpolant, self.seed, self.rank = index, interpolant, seed, rank
        self.tangents, self.device, self._total = tangents or Tangents(), device, total
        self._streams: dict[str, torch.Generator] = {}

    @property
    def index(self) -> int:
        """The iteration, from 0. An objective that reads it is not trained by a CUDA graph; see ``decide``."""
        return self._index

    def decide(self, rule: Callable[[int], T]) -> T:
        """``rule(index)``, such as whether a term has begun.

        A CUDA graph (``train.graphs``) serves the iterations for which the rule returns the same value.
        """
        return rule(self._index)

    @property
    def total(self) -> int:
        """Iterations of the run. The length of a run whose objective reads this cannot change on resume."""
        return self._total

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1). Reading it reads ``total`` and ``index``."""
        return self.index / self.total

    @property
    def generator(self) -> torch.Generator:
        """The stream "default", for draws of your own."""
        return self.stream("default")

    def stream(self, name: str) -> torch.Generator:
        """The generator of a named stream; a second call continues it."""
        return self._stream(name)

    def _stream(self, name: str) -> torch.Generator:
        if name not in self._streams:
            self._streams[name] = self._fresh(name)
        return self._streams[name]

    def _fresh(self, name: str, device: torch.device | str | None = None, rank: int | None = None) -> torch.Generator:
        key = zlib.crc32(f"{self.seed}/{self._index}/{self.rank if rank is None else rank}/{name}".encode())
        return torch.Generator(device or self.device).manual_seed((self.seed << 32) ^ key)

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        """Standard normal noise. A named draw is the same each time it is asked for; an unnamed one is always new."""
        generator = self._stream("default") if name is None else self._fresh(name)
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        """[B] times of a named draw, in (0, 1); a "grid" includes 0 and 1."""
        return sampler.draw(layout.batch_size, self._fresh(name), self.device)

    def choice(self, values: tuple[float, ...], name: str) -> float:
        """One of ``values``, by a named draw on the host, since it decides what is computed. All micro-batches of the
        iteration get the same one: processes must call a sharded network equally often."""
        if len(values) == 1:
            return values[0]
        return values[int(torch.randint(len(values), (1,), generator=self._fresh(name, "cpu", rank=0)))]

    def jvp(
        self, f: Function, primals: Tensors, tangents: Tensors, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        """f(*primals) with its graph, and the detached derivative of f at ``primals`` in the direction ``tangents``.

        Args:
            primals: states [B, ...] or [T, C], and times [B].
            layout: of the states; finite differences on packed states need it.

        Raises:
            FewstepError: finite differences on packed states without a layout.
        """
        return self.tangents(f, primals, tangents, layout, self.edges)


class Objective(ABC, Generic[C]):
    """A distillation method. It owns its networks, its phases and its losses; the engine owns the rest.

    ``needs`` is checked against what the backbone and the data set provide before any weights load. "jvp" is special:
    where the backbone does not provide it, ``Step.jvp`` uses finite differences and the run says so. "two_time" asks
    for a student that takes a target time ``s_B``, and for a sampler that passes one ("jump", "gamma"). A name of your
    own, such as "pairs", asks for a data set whose ``provides`` has it.

    ``sampler`` is the registered sampler of the contract: "euler", "heun" and "consistency" ask for F(x, t), "jump" and
    "gamma" for F(x, t, s).

    ``teaches`` says that it learns from data alone: there is no teacher, and the student begins as
    ``Backbone.initial`` makes it.
    """

    Config: ClassVar[type[Strict]]
    needs: ClassVar[frozenset[str]] = frozenset()
    sampler: ClassVar[str] = "euler"
    teaches: ClassVar[bool] = False

    def __init__(self, config: C) -> None:
        self.config = config

    def networks(self) -> dict[str, NetSpec]:
        """The trained networks by name; "student" is the one that is exported."""
        return {"student": NetSpec()}

    def check(self, train: TrainConfig) -> None:
        """Refuse settings that this objective cannot be trained with, before anything is loaded.

        Raises:
            FewstepError: naming the key.
        """

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        """What the objective trains on: the run's data set, or one made from it, such as pairs of the teacher."""
        return dataset

    def contract(self) -> Contract:
        """How the student is to be sampled; stored with it."""
        return Contract(sampler=self.sampler, two_time="two_time" in self.needs)

    def phase(self, step: int) -> Phase:
        """What iteration ``step`` trains."""
        return Phase()

    @abstractmethod
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        """Named loss terms. The engine minimises the sum of their means over all micro-batches of the iteration.

        Return a term unreduced: a value for each element (shaped like ``batch.x0``; elements have equal weight) or for
        each sample ([B]; samples have equal weight). The engine takes the mean, also over micro-batches of unequal
        size. A scalar works where micro-batches are of equal size, and is refused elsewhere.
        """


def per(reduction: Reduction, error: Tensor, layout: Layout) -> Tensor:
    """A loss term of ``error`` ([B, ...] or [T, C]) by the key ``reduction`` of a config: the error itself for
    "element" (a long sample weighs more), [B] means for "sample"."""
    return error if reduction == "element" else layout.mean(error)


def means(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scalar mean of each loss term, in float32 at least; 0 for one without elements, of an empty sample alone."""
    exact = {name: term.to(torch.promote_types(term.dtype, torch.float32)) for name, term in terms.items()}
    return {name: term.mean() if term.numel() else term.sum() for name, term in exact.items()}
