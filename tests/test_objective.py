"""Sums of objectives: networks, needs, phases, contracts and term names of the parts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import OBJECTIVES, Critic, ObjectiveConfig, Regress, TwoTimes, trainer
from fewstep_consistency.cm import Consistency
from fewstep_consistency.config import ConsistencyConfig
from fewstep_mdt.config import VMConfig
from fewstep_mdt.vm import VelocityMatching
from torch import Tensor, nn

from fewstep.config.resolve import check_needs
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.compose import Sum
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone, check_objective, tiny_batch


class Pair(Sum[ObjectiveConfig]):
    """A sum of the objectives that the test sets."""

    Config = ObjectiveConfig
    parts: ClassVar[tuple[Objective[Any], ...]] = ()

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config, self.parts)


def pair(*parts: Objective[Any]) -> Pair:
    Pair.parts = parts
    return Pair(ObjectiveConfig())


class Ema(Regress):
    """Has an EMA of its own and a network of its own."""

    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(ema=(0.9, 0.5)), "fake": NetSpec(init="student")}

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        assert isinstance(nets.ema("student", 0.9), nn.Module)
        return super().loss(batch, nets, step)


class OtherRate(Regress):
    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(lr_scale=0.5)}


class OtherSteps(Regress):
    def contract(self) -> Contract:
        return Contract(steps=(7,))


class Named(Regress):
    """Its loss has another name than "loss", which its phase says."""

    def phase(self, step: int) -> Phase:
        return Phase(("student",), "named")

    def named(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"named": nets.student(batch.x0, torch.ones(len(batch.x0)), batch.cond, batch.layout).square()}


def test_networks_are_merged_with_the_ema_rates_of_all() -> None:
    specs = pair(Ema(ObjectiveConfig()), Regress(ObjectiveConfig()), Ema(ObjectiveConfig())).networks()
    assert specs == {"student": NetSpec(ema=(0.9, 0.5)), "fake": NetSpec(init="student")}


def test_an_average_that_was_not_declared_is_refused() -> None:
    nets = trainer(ema=[0.99]).nets.view
    for name, rate in (("student", 0.9), ("studnet", 0.99)):
        with pytest.raises(FewstepError) as caught:
            nets.ema(name, rate)
        assert str(caught.value).startswith(f"nets.ema: got {name!r} at {rate}; accepted: 'student' at 0.99; ")
    assert isinstance(nets.ema("student", 0.99), nn.Module)


def test_consistency_with_an_ema_target_and_velocity_matching_train_together() -> None:
    class Both(Sum[ConsistencyConfig]):
        Config = ConsistencyConfig

        def __init__(self, config: ConsistencyConfig) -> None:
            consistency = Consistency(ConsistencyConfig(target="ema", target_ema=0.8))
            super().__init__(config, [consistency, VelocityMatching(VMConfig())])

        def contract(self) -> Contract:
            return Contract()

    assert Both(ConsistencyConfig()).networks()["student"].ema == (0.8,)
    check_objective(Both)


def test_networks_that_differ_are_refused() -> None:
    with pytest.raises(
        FewstepError, match=r"network 'student': summed objectives disagree about its lr_scale: 1\.0, 0\.5"
    ):
        pair(Regress(ObjectiveConfig()), OtherRate(ObjectiveConfig())).networks()


def test_needs_add_up_and_are_held_against_the_backbone() -> None:
    both = pair(Regress(ObjectiveConfig()), TwoTimes(ObjectiveConfig()))
    assert both.needs == {"two_time", "jvp"}
    assert Sum.needs == frozenset()
    with pytest.raises(FewstepError, match="needs 'two_time'"):
        check_needs(both, type(trainer().nets.view.student), method="pair")


def test_contracts_must_agree_before_training_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pair(Regress(ObjectiveConfig()), Regress(ObjectiveConfig())).contract() == Contract()
    pair(Regress(ObjectiveConfig()), OtherSteps(ObjectiveConfig()))
    monkeypatch.setitem(OBJECTIVES, "tiny-pair", Pair)
    with pytest.raises(FewstepError, match="Regress and OtherSteps cannot be summed, their students are sampled diff"):
        trainer("tiny-pair")


def test_phases_that_train_different_networks_are_refused() -> None:
    both = pair(Regress(ObjectiveConfig()), Critic(ObjectiveConfig()))
    assert both.phase(0) == Phase(("student",))
    with pytest.raises(FewstepError, match="they train different networks at step 1"):
        both.phase(1)


def test_each_part_uses_the_loss_of_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    pair(Regress(ObjectiveConfig()), Named(ObjectiveConfig()))
    monkeypatch.setitem(OBJECTIVES, "tiny-pair", Pair)
    rows: list[dict[str, Any]] = []
    trainer("tiny-pair", steps=1).train(rows.append, lambda: None)
    assert set(rows[0]["loss"]) == {"fit", "pull", "named"}


def test_terms_of_one_name_are_prefixed_and_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "tiny-pair", Pair)
    rows: list[dict[str, Any]] = []
    for parts in ((Regress, Ema), (Regress, Regress)):
        pair(*(one(ObjectiveConfig()) for one in parts))
        trainer("tiny-pair", steps=1).train(rows.append, lambda: None)
    assert set(rows[0]["loss"]) == {"Regress/fit", "Regress/pull", "Ema/fit", "Ema/pull"}
    assert set(rows[1]["loss"]) == {"Regress1/fit", "Regress1/pull", "Regress2/fit", "Regress2/pull"}
    assert rows[1]["total"] == pytest.approx(sum(rows[1]["loss"].values()))


def test_a_guided_two_time_network_gets_its_second_time_in_both_passes() -> None:
    network, batch = TinyBackbone().double(), tiny_batch()
    t_B, s_B = torch.full((3,), 0.9, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    guided = Teacher(network, Guidance(3.0))(batch.x0, t_B, batch.cond, batch.layout, s_B=s_B)
    positive = network(batch.x0, t_B, batch.cond, batch.layout, s_B=s_B)
    negative = network(batch.x0, t_B, batch.cond.negative(), batch.layout, s_B=s_B)
    torch.testing.assert_close(guided, positive + 2.0 * (positive - negative))
    assert not torch.allclose(guided, Teacher(network, Guidance(3.0))(batch.x0, t_B, batch.cond, batch.layout))
