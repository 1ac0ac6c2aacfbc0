"""The three ways to differentiate agree, and the choice between them is made once, with its reason said aloud."""

from __future__ import annotations

from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import BACKBONES, Critic, Tiny, Transport, trainer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.core.batch import Condition
from fewstep.core.derivatives import Tangents, finite_difference
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Phase, means
from fewstep.engine.derivatives import Derivatives, choose_tangents
from fewstep.engine.step import TrainStep
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


def field(x: Tensor, t: Tensor) -> Tensor:
    """A velocity with a derivative known in closed form."""
    return torch.sin(x) * (1 + t[:, None].square())


@pytest.mark.parametrize("mode", ["one-pass", "two-pass", "finite-difference"])
def test_modes_agree_with_the_closed_form_in_float64(mode: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    x, d = (torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    t, dt = (torch.rand(5, generator=draw, dtype=torch.float64) for _ in range(2))
    value, tangent = Tangents(mode, step=1e-4)(field, (x, t), (d, dt))
    exact = x.cos() * d * (1 + t[:, None].square()) + x.sin() * (2 * t * dt)[:, None]
    torch.testing.assert_close(value, field(x, t), rtol=0, atol=1e-12)
    torch.testing.assert_close(tangent, exact, rtol=0, atol=1e-6)
    assert not tangent.requires_grad


def test_modes_give_the_same_training_step_in_float64() -> None:
    """Loss and parameter gradients through the engine's own probe path, on a network with weights."""
    grads = {}
    for mode in ("one-pass", "two-pass", "finite-difference"):
        run = trainer("tiny-transport", dtype=torch.float64)
        step = TrainStep(run, run.objective.phase(0), 0, 0, Tangents(mode, step=1e-4))
        batch = run.reader.batch(0)
        batch = type(batch)(batch.x0.double(), batch.layout, batch.cond)
        losses = means(run.gradients.terms(run.objective.phase(0), batch, step))
        parts = torch.autograd.grad(losses["vm"], list(run.nets.view.student.parameters()))
        grads[mode] = torch.cat([losses["vm"].detach()[None], *(g.flatten() for g in parts)])
    torch.testing.assert_close(grads["two-pass"], grads["one-pass"], rtol=0, atol=1e-12)
    torch.testing.assert_close(grads["finite-difference"], grads["one-pass"], rtol=0, atol=1e-6)


def started(objective: str, backbone: str = "tiny", said: list[str] | None = None, steps: int = 1) -> Trainer:
    """A trainer after its first iterations, in which it chose how to differentiate."""
    run = trainer(objective, backbone, said=said, steps=steps)
    run.train(lambda _: None, lambda: None)
    return run


def test_exact_mode_is_announced() -> None:
    said: list[str] = []
    assert started("tiny-transport", said=said).derivatives.tangents.mode == "one-pass"
    assert said == ["derivatives: one-pass (the backbone provides 'jvp')"]


def test_op_without_forward_mode_falls_back_and_the_warning_names_the_reason() -> None:
    said: list[str] = []
    run = started("tiny-transport", "tiny-fused", said)
    assert run.derivatives.tangents.mode == "finite-difference"
    (line,) = said
    assert line.startswith("warning: derivatives by finite differences")
    assert "You must implement the jvp function" in line


def test_backbone_without_jvp_gets_finite_differences_and_says_so() -> None:
    said: list[str] = []
    assert started("tiny-transport", "tiny-nojvp", said).derivatives.tangents.mode == "finite-difference"
    assert said == [
        "warning: derivatives by finite differences, which are not exact: the backbone does not provide 'jvp'"
    ]


@pytest.mark.parametrize("backbone", ["tiny", "tiny-nojvp", "tiny-fused"])
def test_method_without_derivatives_says_nothing(backbone: str) -> None:
    said: list[str] = []
    started("tiny-regress", backbone, said)
    assert said == []


class Recomputed(Tiny):
    """Activation checkpointing, which has a forward-mode derivative only without a graph."""

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(x, t_B, cond, layout)
        out: Tensor = checkpoint(lambda a, b: run(a, b, cond, layout), x, t_B, use_reentrant=False)
        return out


def test_two_passes_are_tried_before_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny-recomputed", Recomputed)
    said: list[str] = []
    run = started("tiny-transport", "tiny-recomputed", said)
    assert run.derivatives.tangents.mode == "two-pass"
    assert said[0].startswith("derivatives: two-pass (forward mode with a graph failed: ")


def test_choice_tries_every_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative is in the second phase only; a trial of the first iteration alone would miss it."""

    class Late(Critic):
        def critic_loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            return Transport.loss(self, batch, nets, step) | super().critic_loss(batch, nets, step)  # type: ignore[arg-type]

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-late", Late)
    said: list[str] = []
    assert started("tiny-late", "tiny-fused", said, steps=3).derivatives.tangents.mode == "finite-difference"
    assert len(said) == 1


def test_trial_leaves_no_trace() -> None:
    run = trainer("tiny-transport")
    run.gradients.tangents_at(run.objective.phase(0), 0)
    assert run.derivatives.tangents.mode == "one-pass"
    assert run.budget.snapshot()["student"] == {"forward": 0, "tangent": 0, "backward": 0}
    assert all(p.grad is None for p in run.nets.view.student.parameters())


def test_error_of_the_objective_itself_is_not_taken_for_a_missing_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Transport):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            return {"vm": torch.ones(2) @ torch.ones(3)}

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-broken", Broken)
    with pytest.raises(RuntimeError, match="size"):
        started("tiny-broken")


def test_no_memory_is_not_taken_for_a_missing_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Transport):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            if len(batch.x0) == 2:
                raise torch.OutOfMemoryError("tried to allocate")
            return super().loss(batch, nets, step)

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-large", Large)
    with pytest.raises(FewstepError, match="out of memory while derivatives are tried on two samples"):
        started("tiny-large")


def test_reason_of_the_first_failure_is_kept() -> None:
    def trial(tangents: Tangents) -> None:
        if tangents.mode != "finite-difference":
            raise RuntimeError(f"no derivative in {tangents.mode}\nmore")

    chosen = choose_tangents(Tangents(), trial)
    assert (chosen.mode, chosen.reason) == ("finite-difference", "forward mode failed: no derivative in one-pass")


def test_a_first_derivative_late_in_a_phase_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op without a tangent kernel, first met at step 40: the run goes on by finite differences, and says so."""

    class Late(Transport):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            source = Transport if step.index >= 40 else engine_helpers.Regress
            return source.loss(self, batch, nets, step)  # type: ignore[arg-type]

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-late", Late)
    said: list[str] = []
    run = started("tiny-late", "tiny-fused", said, steps=40)
    assert (said, run.derivatives.tangents.reason) == ([], "not used by this method")
    run = started("tiny-late", "tiny-fused", said, steps=42)
    assert run.derivatives.tangents.mode == "finite-difference"
    assert said[0].startswith("warning: derivatives by finite differences")


def test_probing_changes_nothing_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the method calls ``step.jvp`` under ``no_grad`` and has drawn before."""

    class Quiet(Transport):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            torch.rand(3)
            with torch.no_grad():
                seen = super().loss(batch, nets, step)["vm"] + torch.rand(())
            return {"fit": seen * nets.student(batch.x0, torch.ones(len(batch.x0)), batch.cond, batch.layout).square()}

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-quiet", Quiet)
    rows: list[list[Any]] = []
    for known in (False, True):
        run = trainer("tiny-quiet", steps=1, precision="bf16")
        if known:
            run.gradients.tangents_at(run.objective.phase(0), 0)
        rows.append([])
        run.train(lambda row: rows[-1].append(row | {"seconds": 0}), lambda: None)
    assert rows[0] == rows[1]


def test_a_second_phase_that_fails_lowers_the_choice_once() -> None:
    said: list[str] = []
    choice = Derivatives(frozenset({"jvp"}), said.append)

    def only_differences(tangents: Tangents) -> None:
        if tangents.mode != "finite-difference":
            raise NotImplementedError("op 'x' has no tangent")

    assert choice.of(Phase(), lambda _: None).mode == "one-pass"
    assert choice.of(Phase(("critic",)), only_differences).mode == "finite-difference"
    assert choice.of(Phase(), only_differences).mode == "finite-difference"
    assert [line.split(":")[0] for line in said] == ["derivatives", "warning"]


@pytest.mark.parametrize("packed", [False, True])
def test_finite_differences_stay_within_the_times_and_are_of_second_order(packed: bool) -> None:
    t_B = torch.tensor([0.0, 1.0, 0.003, 0.998, 0.5], dtype=torch.float64)
    layout = Packed.of_lengths([2, 0, 1, 3, 2]) if packed else Dense(5)
    x = torch.randn(8 if packed else 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked: list[Tensor] = []

    def f(x: Tensor, t_B: Tensor) -> Tensor:
        asked.append(t_B)
        t = layout.expand(t_B, x)
        return torch.sin(3 * x) * (1 + t**3)

    def error(h: float) -> float:
        slope = finite_difference(f, (x, t_B), (torch.ones_like(x), torch.ones_like(t_B)), h, layout)[1]
        t = layout.expand(t_B, x)
        return float((slope - 3 * torch.cos(3 * x) * (1 + t**3) - torch.sin(3 * x) * 3 * t**2).abs().max())

    coarse, fine = error(1e-2), error(5e-3)
    assert 3.3 < coarse / fine < 4.7
    assert min(float(t.min()) for t in asked) >= 0
    assert max(float(t.max()) for t in asked) <= 1


def test_finite_differences_stay_on_one_side_of_a_jump() -> None:
    """A slope that jumps at 0.6, as the path of a teacher that is guided from there on."""
    t_B = torch.tensor([0.595, 0.6, 0.604, 0.99, 0.3], dtype=torch.float64)

    def f(x: Tensor, t_B: Tensor) -> Tensor:
        return x * torch.where(t_B < 0.6, t_B, 7 * t_B - 3.6)[:, None]

    def slope(edges: tuple[float, ...]) -> Tensor:
        x, rest = torch.ones(5, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
        return finite_difference(f, (x, t_B), (rest, torch.ones_like(t_B)), 0.01, edges=edges)[1][:, 0]

    exact = torch.tensor([1.0, 0.0, 7.0, 7.0, 1.0], dtype=torch.float64)
    kept = torch.tensor([0, 2, 3, 4])  # at the edge itself either side is right
    torch.testing.assert_close(slope((0.6,))[kept], exact[kept])
    assert not torch.allclose(slope(())[kept], exact[kept], atol=0.1)


def test_a_run_knows_where_its_teacher_jumps() -> None:
    run = trainer("tiny-transport")
    run.teacher.guidance = Guidance(3.0, (0.6, 1.0))
    assert TrainStep(run, run.objective.phase(0), 0, 0).edges == (0.6,)
    assert Guidance(1.0, (0.6, 0.9)).edges == Guidance(3.0).edges == ()
    assert Guidance(3.0, (0.0, 0.9)).edges == (0.9,)


def test_finite_differences_on_packed_states_need_the_layout() -> None:
    with pytest.raises(FewstepError, match=r"packed states \[5, 3\] need layout=batch\.layout"):
        finite_difference(lambda x, t: x, (torch.ones(5, 3), torch.ones(2)), (torch.ones(5, 3), torch.ones(2)), 0.1)


@pytest.mark.parametrize("mode", ["two-pass", "finite-difference"])
def test_autocast_keeps_the_gradients_of_weights_cast_without_a_graph(mode: Any) -> None:
    grads = {}
    for precision in ("fp32", "bf16"):
        run = trainer("tiny-transport", precision=precision)
        phase = run.objective.phase(0)
        step = TrainStep(run, phase, 0, 0, Tangents(mode, step=0.1))
        losses = means(run.gradients.terms(phase, run.reader.batch(0), step))
        grads[precision] = torch.autograd.grad(losses["vm"], list(run.nets.view.student.parameters()))
    assert all(bool(g.any()) for g in grads["bf16"])
    for ours, exact in zip(grads["bf16"], grads["fp32"], strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 0.3


def test_autocast_has_no_weight_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Looks(Transport):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            seen.append(torch.is_autocast_cache_enabled())
            return super().loss(batch, nets, step)

    monkeypatch.setitem(engine_helpers.OBJECTIVES, "tiny-looks", Looks)
    run = trainer("tiny-looks", precision="bf16", steps=1)
    run.train(lambda _: None, lambda: None)
    assert set(seen) == {False}
