"""What an author leans on: batches of a class of their own, networks of their own, needs that are checked early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import engine_helpers
import pytest
import torch
from engine_helpers import OBJECTIVES, ObjectiveConfig, Regress, Tiny, TinyData, TinyDataConfig, TwoTimes, install
from fewstep_toy.network import ToyFlow
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.derivatives import Tangents
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Nets, NetSpec, Objective, Step
from fewstep.engine.budget import Budget
from fewstep.engine.step import TrainStep
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry
from fewstep.testing import TinyBackbone, check_objective, tiny_batch


@pytest.fixture(autouse=True)
def _installed() -> None:
    install()


def file(kind: str, cls: type) -> str:
    """The name under which a class is registered from now on."""
    name = cls.__name__.lower()
    if name not in registry().names(kind):
        registry().add(Entry(kind, name, "author-tests", f"{cls.__module__}:{cls.__name__}"))
    return name


@dataclass(frozen=True, eq=False)
class Labelled(Condition):
    label: Tensor | None = None


@dataclass(frozen=True)
class Pairs(Batch):
    """Clean samples, each beside the noise that a teacher made it from."""

    noise: Tensor | None = None  # as x0
    weight: Tensor | None = None  # [B]
    extra: dict[str, Tensor] | None = None
    source: str = ""


def pairs(packed: bool) -> Pairs:
    layout = Packed.of_lengths([2, 0, 3, 1]) if packed else Dense(6)
    x0, count = torch.arange(12.0).reshape(6, 2), layout.batch_size
    cond = Labelled(torch.rand(count, 3), label=torch.arange(count))
    return Pairs(x0, layout, cond, -x0, torch.arange(1.0 * count), {"row": x0[:, 0]}, "teacher")


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_of_another_class_stays_whole_when_selected(packed: bool) -> None:
    part = pairs(packed).select(torch.tensor([3, 0]))
    assert isinstance(part, Pairs)
    assert torch.equal(part.noise, -part.x0)
    assert part.weight.tolist() == [3.0, 0.0]
    assert torch.equal(part.extra["row"], part.x0[:, 0])
    assert part.source == "teacher"
    assert part.layout.batch_size == 2
    assert isinstance(part.cond, Labelled)
    assert part.cond.label.tolist() == [3, 0]


def test_a_batch_of_another_class_stays_whole_on_another_device_and_in_another_type() -> None:
    moved = pairs(False).to("meta")
    assert isinstance(moved, Pairs)
    assert {t.device.type for t in (moved.x0, moved.noise, moved.weight, moved.extra["row"])} == {"meta"}
    assert {t.device.type for t in (moved.cond.tokens, moved.cond.label)} == {"meta"}
    wide = pairs(True).cast(torch.float64)
    assert {t.dtype for t in (wide.x0, wide.noise, wide.extra["row"], wide.cond.tokens)} == {torch.float64}
    assert wide.cond.label.dtype == torch.int64


def test_a_condition_of_another_class_stays_one_without_its_tokens() -> None:
    cond = Labelled(torch.ones(2, 3), label=torch.arange(2))
    for changed in (cond.negative(), cond.dropped(torch.tensor([True, False]))):
        assert isinstance(changed, Labelled)
        assert changed.label.tolist() == [0, 1]
    assert cond.negative().blank
    assert not cond.negative().dropped(torch.tensor([True, False])).blank


class PairedData(TinyData):
    provides: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        plain = super().batch(indices, generator)
        return Pairs(plain.x0, plain.layout, plain.cond, -plain.x0)


class Regression(Objective[ObjectiveConfig]):
    """The student jumps from the stored noise to its sample."""

    Config = ObjectiveConfig
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "jvp"})

    def loss(self, batch: Any, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B = torch.ones(batch.layout.batch_size, dtype=batch.x0.dtype)
        value, _ = step.jvp(
            lambda x, t: nets.student(x, t, batch.cond, batch.layout),
            (batch.noise, t_B),
            (batch.noise, torch.ones_like(t_B)),
            batch.layout,
        )
        return {"pair": (batch.noise - value - batch.x0).square()}


def test_a_method_gets_the_batch_that_its_data_set_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the probe of derivatives, which selects, and in every one of several passes."""
    monkeypatch.setitem(OBJECTIVES, "regression", Regression)
    run = engine_helpers.trainer("regression", accumulate=2, steps=2)
    run.dataset = PairedData(TinyDataConfig(), run.teacher.backbone)
    run.train(lambda _: None, lambda: None)
    assert run.derivatives.probed


def test_pairs_are_asked_of_the_data_set_before_anything_loads() -> None:
    method, data = file("objective", Regression), file("dataset", PairedData)
    with pytest.raises(FewstepError) as caught:
        engine_helpers.resolve(method, "tiny")
    text = (
        "method 'regression' needs 'pairs', which backbone 'tiny' does not provide: it provides dense, jvp, nor does "
    )
    assert str(caught.value).startswith(text + "data set 'tiny-data': it provides nothing; the method needs jvp, pairs")
    assert engine_helpers.resolve(method, "tiny", dataset=data).dataset.name == data


def test_the_kit_takes_a_method_with_its_own_batch() -> None:
    plain = tiny_batch(dtype=torch.float32)
    check_objective(Regression, backbone=TinyBackbone(), batch=Pairs(plain.x0, plain.layout, plain.cond, -plain.x0))
    with pytest.raises(AssertionError, match="needs pairs, which the network does not provide: pass another, or a ba"):
        check_objective(Regression)


# Two times.


class Jumps(TwoTimes):
    sampler: ClassVar[str] = "jump"


class Meant(Regress):
    sampler: ClassVar[str] = "jump"


class Unknown(Regress):
    def contract(self) -> Contract:
        return Contract(sampler="eular")


class TwoTimed(Tiny):
    provides: ClassVar[frozenset[str]] = Tiny.provides | {"two_time"}


def test_which_samplers_pass_a_target_time() -> None:
    found = {one.name: one.load().two_time for one in registry().entries("sampler")}
    assert {name for name, passes in found.items() if passes} == {"gamma", "jump"}
    assert set(found) >= {"euler", "heun", "consistency"}


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (TwoTimes, "needs 'two_time', and its sampler 'euler' never passes the target time s_B; accepted: 'jump'"),
        (Meant, "does not need 'two_time', and its sampler 'jump' passes a target time; accepted: 'euler'"),
        (Unknown, "unknown sampler 'eular': accepted are consistency, euler, gamma, heun, jump; did you mean 'euler'?"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_before_training(cls: type, text: str) -> None:
    with pytest.raises(FewstepError) as caught:
        engine_helpers.resolve(file("objective", cls), file("backbone", TwoTimed))
    assert text in str(caught.value)


def test_a_two_time_method_that_jumps_is_taken() -> None:
    assert engine_helpers.resolve(file("objective", Jumps), file("backbone", TwoTimed)).method.name == "jumps"


# Networks of an author's own.


class Config(Strict):
    """Nothing to set."""


class Adversary(Regress):
    """A discriminator that no backbone is."""

    Config = Config

    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(ema=(0.9,)), "head": NetSpec(build=self.head, ema=(0.5,))}

    def head(self, backbone: Any) -> nn.Module:
        return nn.Linear(3, 1)

    def phase(self, step: int) -> Any:
        return engine_helpers.Phase(("student", "head"))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B = torch.ones(batch.layout.batch_size, dtype=batch.x0.dtype)
        fake = batch.x0 - nets.student(batch.x0, t_B, batch.cond, batch.layout)
        kept = nets.ema("head", 0.5)(fake) + nets.ema("student", 0.9)(batch.x0, t_B, batch.cond, batch.layout)[..., :1]
        return {"score": (nets.head(fake) - 0.1 * kept.detach()).square()}


def test_the_kit_converts_a_network_that_the_method_builds() -> None:
    check_objective(Adversary)


def test_a_built_network_gets_one_with_weights_even_from_the_toy() -> None:
    """The toy's teacher is a closed form without any."""
    seen: list[Any] = []

    class Grows(Regress):
        def networks(self) -> dict[str, NetSpec]:
            return {"student": NetSpec(), "critic": NetSpec(build=lambda network: seen.append(network) or network)}

    toy = registry().get("backbone", "toy")
    teacher = toy.load().teacher(toy.load_config()(width=8, pretrain=0))
    from fewstep.engine.networks import Networks

    nets = Networks(Grows(ObjectiveConfig()).networks(), teacher, torch.device("cpu"))
    assert isinstance(seen[0], ToyFlow)
    assert seen[0] is nets.trained["critic"]  # its own to keep: the student is another
    assert not {id(p) for p in nets.trained["student"].parameters()} & {id(p) for p in seen[0].parameters()}


class Features(Tiny):
    """Gives its velocity and what lies below it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        v = super().forward(*args, **kwargs)
        return v, {"features": [2 * v]}


def test_the_budget_counts_backbones_also_inside_another_network_and_behind_several_outputs() -> None:
    budget, x, ones, head = Budget(), torch.randn(5, 2), torch.ones(5), nn.Linear(2, 1)
    inside = nn.Sequential(Features())
    inside.forward = lambda *args: inside[0](*args)  # type: ignore[method-assign]
    for name, module in {"student": Tiny(), "critic": inside, "head": head}.items():
        budget.watch(name, module)
    v, more = inside(x, ones, Condition(), Dense(5))
    head(v + more["features"][0]).sum().backward()
    more = inside(x, ones, Condition(), Dense(5))[1]
    more["features"][0].sum().backward()
    assert budget.snapshot() == {
        "student": {"forward": 0, "tangent": 0, "backward": 0},
        "critic": {"forward": 10, "tangent": 0, "backward": 10},
        "head": {"forward": 0, "tangent": 0, "backward": 0},
    }


def test_the_budget_counts_one_backward_pass_also_where_a_tangent_takes_a_pass_of_its_own() -> None:
    for mode, expected in (
        ("one-pass", {"forward": 0, "tangent": 4, "backward": 4}),
        ("two-pass", {"forward": 4, "tangent": 4, "backward": 4}),
        ("finite-difference", {"forward": 12, "tangent": 0, "backward": 4}),
    ):
        run = engine_helpers.trainer("tiny-transport", batch_size=4)
        phase = run.objective.phase(0)
        step = TrainStep(run, phase, 0, 0, Tangents(mode))
        run.gradients.terms(phase, run.reader.batch(0), step)["vm"].backward()
        assert run.budget.snapshot()["student"] == expected
