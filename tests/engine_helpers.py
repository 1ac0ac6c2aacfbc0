"""A tiny backbone, data set and objectives for the engine's tests, filed in the process's registry by ``install``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.config.resolve import Layers, resolve_stages
from fewstep.config.run import Resolved
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.engine.trainer import Trainer
from fewstep.plugins.registry import Entry, registry
from fewstep.texts import read_json


class TinyConfig(Strict):
    width: int = Field(8, ge=1, description="hidden units")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout, to see torch's own generator")


class Tiny(Backbone):
    """Velocity of points [B, 2]."""

    Config = TinyConfig
    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp"})
    dataset = "tiny-data"

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        both = torch.cat([x, t_B.to(x.dtype)[:, None]], 1)
        out: Tensor = self.layers(both.to(self.layers[0].weight.dtype)).to(x.dtype)
        return out

    @classmethod
    def teacher(cls, config: TinyConfig) -> Teacher:
        torch.manual_seed(1)
        return Teacher(cls(config.width, config.dropout))

    def save(self, folder: Path, *, half: bool = False) -> None:
        tensors = {key: value.half() if half else value for key, value in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps({"width": self.width, "dropout": self.dropout}))

    @classmethod
    def load(cls, folder: Path) -> Tiny:
        net = cls(**read_json(folder / "model.json"))
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net


class NoJvp(Tiny):
    """The same network, which does not declare a derivative."""

    provides: ClassVar[frozenset[str]] = frozenset({"dense"})


class Opaque(torch.autograd.Function):
    """The identity with a backward pass and no forward-mode derivative, as a fused kernel may be."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Fused(Tiny):
    """Declares "jvp" and does not have it."""

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return Opaque.apply(super().forward(x, t_B, cond, layout))


class TinyDataConfig(Strict):
    count: int = Field(37, ge=1, description="samples")


class TinyData(Dataset):
    """Points on a ring with fresh noise on each draw."""

    Config = TinyDataConfig

    def __len__(self) -> int:
        return int(self.config.count)

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        angle = torch.tensor(indices) * (6.28 / len(self))
        ring = torch.stack([angle.cos(), angle.sin()], 1)
        return Batch(ring + 0.1 * torch.randn(ring.shape, generator=generator), Dense(len(indices)))


class ObjectiveConfig(Strict):
    weight: float = Field(1.0, gt=0, description="weight of the term")
    bad_step: int = Field(-1, description="the step whose loss is no number")


class Regress(Objective[ObjectiveConfig]):
    """The student learns the teacher's velocity, scaled."""

    Config = ObjectiveConfig

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        x0, layout, cond = batch.x0, batch.layout, batch.cond
        t_B = torch.rand(layout.batch_size, generator=step.stream("default"), device=x0.device)
        x_t = step.interpolant.interpolate(x0, step.randn_like(x0, "noise"), t_B, layout)
        with torch.no_grad():
            v = nets.teacher(x_t, t_B, cond, layout)
        error = (nets.student(x_t, t_B, cond, layout) - 0.5 * v).square().mean()
        bad = float("nan") if step.index == self.config.bad_step else 1.0
        return {"fit": self.config.weight * error * bad, "pull": 0.01 * x_t.square().mean() * error.detach()}


class LooksAhead(Regress):
    """A schedule over the whole run."""

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"fit": super().loss(batch, nets, step)["fit"] * (1 - step.index / step.total)}


class Transport(Objective[ObjectiveConfig]):
    """VM: F + t dF/dt against the teacher."""

    Config = ObjectiveConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        x0, layout, cond = batch.x0, batch.layout, batch.cond
        t_B = torch.rand(layout.batch_size, generator=step.stream("t"), device=x0.device).to(x0.dtype)
        x_t = step.interpolant.interpolate(x0, step.randn_like(x0), t_B, layout)
        with torch.no_grad():
            v = nets.teacher(x_t, t_B, cond, layout)
        f, df = step.jvp(lambda x, t: nets.student(x, t, cond, layout), (x_t, t_B), (v, torch.ones_like(t_B)))
        return {"vm": (f + layout.expand(t_B, f) * df - v).square().mean()}


class Critic(Objective[ObjectiveConfig]):
    """Two networks in turn, one of them with an EMA of its own."""

    Config = ObjectiveConfig

    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(ema=(0.9,)), "critic": NetSpec(lr_scale=2.0, build=lambda _: Tiny(4))}

    def phase(self, step: int) -> Phase:
        return Phase(("critic",), "critic_loss") if step % 3 else Phase(("student",))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"fool": (self._of(nets.student, batch, step) - self._of(nets.critic, batch, step)).square().mean()}

    def critic_loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        kept = self._of(nets.ema("student", 0.9), batch, step)
        return {"critic": (self._of(nets.critic, batch, step) - kept).square().mean()}

    def _of(self, net: nn.Module, batch: Batch, step: Step) -> Tensor:
        x = batch.x0 + step.randn_like(batch.x0, "noise")
        out: Tensor = net(x, torch.ones(len(x)), batch.cond, batch.layout)
        return out


class TwoTimes(Regress):
    needs: ClassVar[frozenset[str]] = frozenset({"two_time", "jvp"})


OBJECTIVES = {
    "tiny-regress": Regress,
    "tiny-ahead": LooksAhead,
    "tiny-transport": Transport,
    "tiny-critic": Critic,
    "tiny-two-times": TwoTimes,
}
BACKBONES = {"tiny": Tiny, "tiny-nojvp": NoJvp, "tiny-fused": Fused}


def install() -> None:
    """File everything in this process's registry, once."""
    if "tiny" in registry().names("backbone"):
        return
    kinds = {"objective": OBJECTIVES, "backbone": BACKBONES, "dataset": {"tiny-data": TinyData}}
    for kind, classes in kinds.items():
        for name, cls in classes.items():
            registry().add(Entry(kind, name, "engine-tests", f"engine_helpers:{cls.__name__}"))


def trainer(
    objective: str = "tiny-regress", backbone: str = "tiny", said: list[str] | None = None, **keys: Any
) -> Trainer:
    """A trainer outside any folder; ``keys`` are of the ``train`` table, ``seed`` apart."""
    seed, dtype = keys.pop("seed", 0), keys.pop("dtype", None)
    config = TrainConfig(**{"steps": 10, "batch_size": 4, "device": "cpu", **keys})
    teacher = BACKBONES[backbone].teacher(TinyConfig())
    if dtype is not None:
        teacher = teacher.to(dtype)
    data = TinyData(TinyDataConfig(), teacher.backbone)
    say = (said if said is not None else []).append
    return Trainer(OBJECTIVES[objective](ObjectiveConfig()), teacher, data, config, seed, say)


def resolve(
    method: str, backbone: str, preset: str | None = None, layers: Layers = (), dataset: str | None = None
) -> Resolved:
    """The config of a run on one backbone."""
    (found,) = resolve_stages(method, backbone, None, preset, layers, dataset).values()
    return found
