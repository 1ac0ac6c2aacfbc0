"""Objectives: what a distillation method minimises, and the step that hands it everything random or delicate."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.derivatives import Tangents
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.times import TimeSampler

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class NetSpec:
    """How the engine makes one trained network: from the teacher's weights, from a fresh ``build``, with its EMAs."""

    init: str = "teacher"
    lr_scale: float = 1.0
    ema: tuple[float, ...] = ()
    build: Callable[[Backbone], nn.Module] | None = None


@dataclass(frozen=True)
class Phase:
    """Which networks an iteration trains, and by which method of the objective."""

    trains: tuple[str, ...] = ("student",)
    loss: str = "loss"


class Nets:
    """The networks of a run by name: ``nets.student``, ``nets.teacher``; ``nets.average("student", 0.99)`` its EMA."""

    def __init__(self, modules: Mapping[str, nn.Module], averages: Mapping[tuple[str, float], nn.Module]) -> None:
        self._modules, self._averages = dict(modules), dict(averages)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name not in modules:
            raise AttributeError(f"no network {name!r}: there are {', '.join(sorted(modules))}")
        return modules[name]

    def average(self, name: str, rate: float) -> nn.Module:
        """The exponential moving average of a network at a rate that its NetSpec declared."""
        return self._averages[name, rate]


@dataclass
class Step:
    """One iteration's randomness and derivatives.

    Draws are named streams, each seeded by (seed, index, rank, name): two terms of one objective that ask for
    "noise" get the same noise, a resumed run needs no generator state, and adding a draw moves no other.
    """

    index: int
    interpolant: Interpolant
    seed: int = 0
    rank: int = 0
    total: int = 1
    tangents: Tangents = field(default_factory=Tangents)
    device: torch.device | str = "cpu"

    @property
    def generator(self) -> torch.Generator:
        """The stream "default", continued for the length of the step."""
        return self.stream("default")

    def __post_init__(self) -> None:
        self._streams: dict[str, torch.Generator] = {}

    def stream(self, name: str) -> torch.Generator:
        """The generator of a named stream; a second call continues it."""
        if name not in self._streams:
            self._streams[name] = self._fresh(name)
        return self._streams[name]

    def _fresh(self, name: str) -> torch.Generator:
        key = zlib.crc32(f"{self.seed}/{self.index}/{self.rank}/{name}".encode())
        return torch.Generator(self.device).manual_seed((self.seed << 32) ^ key)

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        """Standard normal noise. A named draw is the same each time it is asked for; an unnamed one is always new."""
        generator = self.generator if name is None else self._fresh(name)
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        """[B] times of a named draw in (0, 1)."""
        return sampler.draw(layout.batch_size, self._fresh(name), self.device)

    def choice(self, values: tuple[float, ...], name: str) -> float:
        """One of ``values`` (guidance given as a list means one value drawn a call)."""
        if len(values) == 1:
            return values[0]
        return values[int(torch.randint(len(values), (1,), generator=self._fresh(name), device=self.device))]

    def jvp(
        self, f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """f's value with its graph, and its detached directional derivative."""
        return self.tangents(f, primals, tangents)


class Objective(ABC, Generic[C]):
    """A distillation method. It owns its networks, its phases and its losses; the engine owns the rest.

    ``needs`` is held against the backbone's ``provides`` before any weights load. "jvp" is special: where the
    backbone does not provide it, ``Step.jvp`` serves finite differences and the run says so.
    """

    Config: ClassVar[type[Strict]]
    needs: ClassVar[frozenset[str]] = frozenset()
    sampler: ClassVar[str] = "euler"

    def __init__(self, config: C) -> None:
        self.config = config

    def networks(self) -> dict[str, NetSpec]:
        """The trained networks by name; "student" is the one that is exported."""
        return {"student": NetSpec()}

    def contract(self) -> Contract:
        """How the student is to be sampled; stored with it."""
        return Contract(sampler=self.sampler, two_time="two_time" in self.needs)

    @property
    def reduction(self) -> str:
        """What its losses are means over, "element" or "sample": the engine weighs passes of unequal size by that."""
        return str(getattr(self.config, "reduction", "sample"))

    def phase(self, step: int) -> Phase:
        """What iteration ``step`` trains."""
        return Phase()

    @abstractmethod
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        """Named scalar terms; the engine minimises their sum."""


class Sum(Objective[C]):
    """An objective that is a sum of others on the same batch; equal stream names share their draws."""

    def __init__(self, config: C, terms: list[Objective[Any]]) -> None:
        super().__init__(config)
        self.terms = terms

    def networks(self) -> dict[str, NetSpec]:
        return {name: spec for term in self.terms for name, spec in term.networks().items()}

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for term in self.terms:
            losses.update(term.loss(batch, nets, step))
        return losses
