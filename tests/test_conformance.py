"""The conformance kit: our own parts pass it, and each of its checks can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.core.pairs import Pair
from fewstep.plugins.registry import registry
from fewstep.testing import TinyBackbone, check_backbone, check_objective, tiny_batch

OBJECTIVES = [e.name for e in registry().entries("objective")]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_our_objectives_pass(name: str) -> None:
    objective = registry().get("objective", name).load()
    paired = "pairs" in objective.Config.model_fields
    coupled = name in ("imm", "drifting")  # they compare samples with one another
    check_objective(objective, batch=pairs() if paired else None, coupled=coupled)


def pairs() -> Pair:
    batch = tiny_batch()
    return Pair(batch.x0, batch.layout, batch.cond, noise=batch.x0.flip(0))


def test_the_toy_passes() -> None:
    toy = registry().get("backbone", "toy")
    network = toy.load()(toy.load_config()(width=8))
    points = tiny_batch((3, 1, 4), packed=True)
    check_backbone(network, Batch(points.x0[:, :2], points.layout))


def test_the_structure_flow_passes() -> None:
    from fewstep_trellis.backbone import StructureFlow
    from fewstep_trellis.models import SparseStructureFlowModel

    from fewstep.core.layout import Dense

    torch.manual_seed(0)
    model = SparseStructureFlowModel(
        resolution=4, in_channels=2, model_channels=16, cond_channels=6, out_channels=2, num_blocks=2, num_heads=2
    )
    for parameter in model.parameters():  # its last layer starts at 0
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    batch = Batch(torch.randn(3, 2, 4, 4, 4), Dense(3), Condition(torch.randn(3, 5, 6)))
    check_backbone(StructureFlow(model), batch)


@pytest.mark.parametrize("packed", [False, True])
def test_the_kits_own_network_passes(packed: bool) -> None:
    check_backbone(TinyBackbone(), tiny_batch(packed=packed))


# Objectives, each with one fault.


class Config(Strict):
    """Of the objectives below."""


class Good(Objective[Config]):
    """Flow matching on the teacher, with a tangent so that everything is used."""

    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def parts(self, batch: Batch, nets: Nets, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        t_B = torch.rand(batch.layout.batch_size, generator=step.stream("t"), dtype=torch.float64)
        x_t = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise"), t_B, batch.layout)
        v = nets.teacher(x_t, t_B, batch.cond, batch.layout).detach()
        return t_B, x_t, v

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)

        def student(x: Tensor, t_B: Tensor) -> Tensor:
            found: Tensor = nets.student(x, t_B, batch.cond, batch.layout)
            return found

        value, slope = step.jvp(student, (x_t, t_B), (v, torch.ones_like(t_B)))
        error = value + batch.layout.expand(t_B, x_t) * slope - v
        return {"good": batch.layout.mean(error.square()).mean()}


class NoGraph(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {k: v.detach() for k, v in super().loss(batch, nets, step).items()}


class OneTermWithoutGraph(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        with torch.no_grad():  # one line too many
            error = nets.student(x_t, t_B, batch.cond, batch.layout) - v
        return super().loss(batch, nets, step) | {"matched": error.square()}


class IgnoresStudent(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        weight = next(nets.student.parameters())
        return {"constant": 0 * weight.sum() + self.parts(batch, nets, step)[2].mean()}


class OddShape(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"odd": super().loss(batch, nets, step)["good"].reshape(1)}


class NotFinite(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"nan": super().loss(batch, nets, step)["good"] / 0}


class NoTerms(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {}


class GlobalNoise(Good):
    def parts(self, batch: Batch, nets: Nets, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        t_B, x_t, v = super().parts(batch, nets, step)
        return t_B, x_t + 0.1 * torch.randn_like(x_t), v


class TrainsTeacher(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        nets.teacher.requires_grad_(True)
        t_B, x_t, _ = self.parts(batch, nets, step)
        student = nets.student(x_t, t_B, batch.cond, batch.layout)
        return {"both": (student - nets.teacher(x_t, t_B, batch.cond, batch.layout)).square().mean()}


class ChangesStudent(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            next(nets.student.parameters()).mul_(0.9)
        return super().loss(batch, nets, step)


class ChangesBatch(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        batch.x0.mul_(0.5)
        return super().loss(batch, nets, step)


class DenseOnly(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, t_B, batch.cond, batch.layout) - v
        return {"first": error.square().sum(tuple(range(1, error.dim()))).mean()}  # over rows, not over samples


class TimeNotSpread(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, t_B, batch.cond, batch.layout) - v
        if len(error) != len(t_B):  # packed rows: by their number, not by their sample
            t_B = t_B.repeat(len(error) // len(t_B) + 1)[: len(error)]
        weighted = t_B.view(-1, *[1] * (error.dim() - 1)) * error.square()
        return {"weighted": batch.layout.mean(weighted).mean()}


class NormOfBatch(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, t_B, batch.cond, batch.layout) - v
        return {"normed": batch.layout.mean((error / v.norm()).square()).mean()}


class Underflows(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, t_B, batch.cond, batch.layout) - v
        return {"relative": batch.layout.mean(error.square() / (0 * v.square() + 1e-60)).mean() * 1e-60}


class DividesByRows(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = (nets.student(x_t, t_B, batch.cond, batch.layout) - v).square()
        return {"by hand": batch.layout.sum(error) / batch.layout.sum(torch.ones_like(error))}


class Undeclared(Good):
    needs: ClassVar[frozenset[str]] = frozenset()


class TwoTimesUndeclared(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, t_B, batch.cond, batch.layout, s_B=0.5 * t_B) - v
        return {"two": batch.layout.mean(error.square()).mean()}


class BackwardsInTime(Good):
    needs: ClassVar[frozenset[str]] = frozenset({"two_time"})
    sampler: ClassVar[str] = "jump"

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)
        error = nets.student(x_t, 0.5 * t_B, batch.cond, batch.layout, s_B=t_B) - v
        return {"two": batch.layout.mean(error.square()).mean()}


class DetachedTime(Good):
    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B, x_t, v = self.parts(batch, nets, step)

        def student(x: Tensor, t_B: Tensor) -> Tensor:
            found: Tensor = nets.student(x.detach(), t_B, batch.cond, batch.layout)
            return found + x * torch.cos(50 * x.detach())

        value, slope = step.jvp(student, (x_t, t_B), (v, torch.ones_like(t_B)))
        return {"detached": batch.layout.mean((value + slope).square()).mean()}


class NoStudent(Good):
    def networks(self) -> dict[str, NetSpec]:
        return {"generator": NetSpec()}


class UnknownNetwork(Good):
    def phase(self, step: int) -> Phase:
        return Phase(("student",)) if step < 5 else Phase(("critic",))


class UnknownLoss(Good):
    def phase(self, step: int) -> Phase:
        return Phase(loss="critic")


class CountsPhases(Good):
    def phase(self, step: int) -> Phase:
        self.calls = getattr(self, "calls", 0) + 1
        return Phase() if self.calls < 4 else Phase(loss="parts")


class UnusedNetwork(Good):
    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(), "critic": NetSpec()}

    def phase(self, step: int) -> Phase:
        return Phase(("student", "critic"))


class UnknownSampler(Good):
    sampler: ClassVar[str] = "eular"


class NeedsMuch(Good):
    needs: ClassVar[frozenset[str]] = frozenset({"discrete"})


class Forgetful(Strict):
    """A config that does not come back from JSON."""

    value: Any = frozenset({1, 2})


def test_a_good_objective_passes() -> None:
    check_objective(Good)
    check_objective(Good, Config(), backbone=TinyBackbone(4), batch=tiny_batch((2, 1)[:1] * 2))


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (NoGraph, "the terms ['good'] have no graph: they do not depend on student"),
        (OneTermWithoutGraph, "the terms ['matched'] have no graph: they do not depend on student"),
        (IgnoresStudent, "does not depend on student, which its phase trains"),
        (OddShape, "the terms ['odd'] have neither one value per sample nor one per element"),
        (NotFinite, "the terms ['nan'] are not finite tensors"),
        (NoTerms, "must be a dict of named terms"),
        (GlobalNoise, "differs for equal seeds"),
        (TrainsTeacher, "reach the teacher"),
        (ChangesStudent, "changes student in place"),
        (ChangesBatch, "changes the batch in place"),
        (DenseOnly, "dense and packed disagree"),
        (TimeNotSpread, "dense and packed disagree"),
        (NormOfBatch, "samples influence one another"),
        (Underflows, "the terms ['relative'] are not finite tensors"),
        (DividesByRows, "the terms ['by hand'] are not finite tensors (one sample of this batch is empty)"),
        (Undeclared, "uses jvp and does not declare that in needs"),
        (TwoTimesUndeclared, "uses two_time and does not declare that in needs"),
        (BackwardsInTime, "asks the student for s_B above t_B"),
        (DetachedTime, "finite differences disagree"),
        (NoStudent, "one must be 'student'"),
        (UnknownNetwork, "trains critic, which networks() does not have"),
        (UnknownLoss, "a phase names the loss 'critic', and there is no such method"),
        (CountsPhases, "phase(1) differs from call to call"),
        (UnusedNetwork, "does not depend on critic, which its phase trains"),
        (UnknownSampler, "its sampler 'eular' is none of"),
        (NeedsMuch, "needs discrete, which the network does not provide"),
    ],
)
def test_a_fault_of_an_objective_is_named(cls: type[Objective[Any]], sentence: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_objective(cls)
    assert str(caught.value).startswith(f"{cls.__name__}: ")
    assert sentence in str(caught.value)


def test_samples_may_be_compared_on_purpose() -> None:
    check_objective(NormOfBatch, coupled=True)


def test_a_config_that_is_lost_in_json_is_named() -> None:
    with pytest.raises(AssertionError, match="round trip through JSON"):
        check_objective(Good, Forgetful())


# Backbones, each with one fault.


class Shape(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout, s_B=s_B)[..., :2]


class Single(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout, s_B=s_B).float()


class Nan(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout, s_B=s_B) * torch.nan


class Noisy(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout, s_B=s_B) + torch.randn_like(x)


class Timeless(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, torch.zeros_like(t_B), cond, layout, s_B=s_B)


class Leaky(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout, s_B=s_B) + x.mean()


class Opaque(torch.autograd.Function):
    """An op without a forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class NoJvp(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        out: Tensor = Opaque.apply(super().forward(x, t_B, cond, layout, s_B=s_B))
        return out


class WrongJvp(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), t_B.detach(), cond, layout, s_B=s_B) + 0 * x


class SilentTwoTimes(TinyBackbone):
    provides: ClassVar[frozenset[str]] = TinyBackbone.provides - {"two_time"}


class RefusesTwoTimes(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if s_B is not None:
            raise TypeError("no second time")
        return super().forward(x, t_B, cond, layout)


class IgnoresTargetTime(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return super().forward(x, t_B, cond, layout)


class SingularAtNoise(TinyBackbone):
    """The data as a noise prediction gives it, (x - t eps) / (1 - t), without a limit at t = 1."""

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        eps, t = super().forward(x, t_B, cond, layout, s_B=s_B), layout.expand(t_B, x)
        return eps - (x - t * eps) / (1 - t)


class SingularAtData(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return (x - super().forward(x, t_B, cond, layout, s_B=s_B)) / layout.expand(t_B, x)


class NamedTaps(TinyBackbone):
    def taps(self) -> Any:
        return {"inner": self.width}


class WrongTaps(TinyBackbone):
    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(self.inner, self.width + 1)]


class OneTarget(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if s_B is not None and s_B.dim() == 2:
            s_B = s_B[:1].expand_as(s_B)
        return super().forward(x, t_B, cond, layout, s_B=s_B)


class PolicyFromScratch(TinyBackbone):
    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        return type(self)(seed=1) if "policy" in needs else super().student(needs)


class ForgetsPolicy(TinyBackbone):
    """A policy has a weight of its own, which the file does not keep."""

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        student = cast(ForgetsPolicy, super().student(needs))
        if "policy" in needs:
            student.own = nn.Parameter(torch.zeros(()))
        return student

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        v = super().forward(x, t_B, cond, layout, s_B=s_B)  # which calls this for each of several targets
        return v if s_B is not None and s_B.dim() == 2 else v + getattr(self, "own", 0)

    def save(self, folder: Path, *, half: bool = False) -> None:
        kept = TinyBackbone(self.width)
        kept.load_state_dict(self.state_dict(), strict=False)
        kept.save(folder, half=half)


class Typo(TinyBackbone):
    provides: ClassVar[frozenset[str]] = TinyBackbone.provides | {"dence"}


class NotDense(TinyBackbone):
    provides: ClassVar[frozenset[str]] = frozenset({"packed", "jvp", "two_time"})


class Frozen(TinyBackbone):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            v = super().forward(x, t_B, cond, layout, s_B=s_B)
        return v + 0 * self.outer.bias


class SavesNothing(TinyBackbone):
    def save(self, folder: Path, *, half: bool = False) -> None:
        """Writes no file."""


class Forgets(TinyBackbone):
    @classmethod
    def load(cls, folder: Path) -> TinyBackbone:
        return cls(seed=1)


class LoadsAnother(TinyBackbone):
    @classmethod
    def load(cls, folder: Path) -> TinyBackbone:
        return TinyBackbone.load(folder)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Shape, "a velocity has the shape of x"),
        (Single, "a velocity has the type of x"),
        (Nan, "values that are not finite"),
        (Noisy, "another velocity on a second call"),
        (Timeless, "does not depend on the time"),
        (Leaky, "sample 0 alone differs"),
        (NoJvp, "provides 'jvp', but forward mode fails"),
        (WrongJvp, "its tangent is not its finite difference"),
        (SilentTwoTimes, "yet takes s_B silently"),
        (RefusesTwoTimes, "provides 'two_time' and refuses s_B"),
        (IgnoresTargetTime, "its velocity does not depend on s_B"),
        (SingularAtNoise, "not finite at t = 1, where every sampler starts"),
        (SingularAtData, "not finite at t = 0, where heun ends"),
        (NamedTaps, "taps() gives {'inner': 16}; it must be a list of pairs (module, channels)"),
        (WrongTaps, "from a layer of 17 channels, which come last"),
        (Typo, "provides dence; known are"),
        (NotDense, "does not provide 'dense'"),
        (Frozen, "no gradient reaches any parameter"),
        (SavesNothing, "save() writes nothing"),
        (OneTarget, "answers for several target times s_B [K, B] are not those for each"),
        (PolicyFromScratch, "provides 'policy', but a new student is not as the teacher"),
        (ForgetsPolicy, "provides 'policy', but save() and load() lose it"),
        (Forgets, "save(half=False) and load() give another network"),
        (LoadsAnother, "load() gives a TinyBackbone"),
    ],
)
def test_a_fault_of_a_backbone_is_named(cls: type[TinyBackbone], sentence: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_backbone(cls(), tiny_batch())
    assert str(caught.value).startswith(f"{cls.__name__}: ")
    assert sentence in str(caught.value)
