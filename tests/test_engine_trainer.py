"""The loop: phases, budget, needs, precision, and errors that name step and term."""

from __future__ import annotations

from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import OBJECTIVES, Regress, Tiny, TinyConfig, TwoTimes, trainer
from torch import nn

from fewstep.config.resolve import check_needs
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import NetSpec
from fewstep.engine.budget import Budget
from fewstep.engine.device import autocast, pick_device
from fewstep.engine.networks import Networks
from fewstep.engine.step import TrainStep
from fewstep.engine.trackers import Window
from fewstep.engine.trainer import NonFinite, Trainer
from fewstep.engine.view import View
from fewstep.errors import FewstepError


def trained(run: Trainer) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    run.train(rows.append, lambda: None)
    return rows


def test_loss_falls_and_rows_say_what_happened() -> None:
    rows = trained(trainer(steps=150, lr=0.02, batch_size=16))
    assert rows[-1]["loss"]["fit"] < 0.2 * rows[0]["loss"]["fit"]
    assert set(rows[0]) == {"step", "loss", "total", "grad_norm", "lr", "seconds", "evaluations"}
    assert rows[0]["step"] == 1
    assert rows[0]["total"] == pytest.approx(rows[0]["loss"]["fit"] + rows[0]["loss"]["pull"])


def test_a_phase_moves_its_networks_and_no_other() -> None:
    run = trainer("tiny-critic", steps=6)
    weights = {name: [p.detach().clone() for p in net.parameters()] for name, net in run.nets.trained.items()}

    def log(row: dict[str, Any]) -> None:
        moved = {
            name
            for name, net in run.nets.trained.items()
            if any(not torch.equal(a, b) for a, b in zip(net.parameters(), weights[name], strict=True))
        }
        assert moved == ({"critic"} if (row["step"] - 1) % 3 else {"student"})
        for name, net in run.nets.trained.items():
            weights[name] = [p.detach().clone() for p in net.parameters()]

    run.train(log, lambda: None)
    assert run.nets.averages.updates == {"student": 2, "critic": 4}


def test_the_teacher_waits_in_the_hosts_memory_until_a_loss_asks_for_it() -> None:
    view = View({"teacher": nn.Linear(2, 2), "student": nn.Linear(2, 2, device="meta")}, {}, torch.device("meta"))
    view.park()
    assert {p.device.type for p in view._modules["teacher"].parameters()} == {"cpu"}
    assert view.student.weight.is_meta
    assert view.parked
    assert view.teacher.weight.is_meta
    assert not view.parked


@pytest.mark.parametrize(("objective", "asks"), [("tiny-regress", True), ("tiny-critic", False)])
def test_a_run_parks_its_teacher_after_the_data(objective: str, asks: bool) -> None:
    run = trainer(objective, steps=3)
    run.prepare()
    assert run.nets.view.parked
    trained(run)
    assert run.nets.view.parked is not asks


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    def end(seed: int) -> torch.Tensor:
        run = trainer("tiny-critic", seed=seed, steps=4)
        trained(run)
        return torch.cat([p.detach().flatten() for net in run.nets.trained.values() for p in net.parameters()])

    assert torch.equal(end(1), end(1))
    assert not torch.equal(end(1), end(2))


def test_budget_counts_samples_by_network_and_kind() -> None:
    run = trainer("tiny-critic", steps=6, batch_size=4, accumulate=2)
    trained(run)  # 2 student iterations: both networks forward; 4 critic iterations: critic and the student's average
    assert run.budget.snapshot() == {
        "teacher": {"forward": 0, "tangent": 0, "backward": 0},
        "student": {"forward": 6 * 8, "tangent": 0, "backward": 2 * 8},
        "critic": {"forward": 6 * 8, "tangent": 0, "backward": 4 * 8},
    }


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("tiny", {"forward": 0, "tangent": 20, "backward": 20}),
        ("tiny-nojvp", {"forward": 60, "tangent": 0, "backward": 20}),
    ],
)
def test_budget_under_derivatives(backbone: str, expected: dict[str, int]) -> None:
    run = trainer("tiny-transport", backbone, steps=5, batch_size=4)
    trained(run)
    assert run.budget.snapshot()["student"] == expected
    assert run.budget.snapshot()["teacher"] == {"forward": 20, "tangent": 0, "backward": 0}


def test_guided_teacher_counts_twice() -> None:
    teacher, budget = Teacher(Tiny(), Guidance(3.0)), Budget()
    budget.watch("teacher", teacher.backbone)
    teacher(torch.zeros(5, 2), torch.ones(5), Condition(torch.zeros(5, 1)), Dense(5))
    assert budget.snapshot()["teacher"]["forward"] == 10


@pytest.mark.parametrize("term", ["fit", "pull"])
def test_loss_that_is_no_number_names_step_and_term(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    class Bad(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, torch.Tensor]:
            losses = super().loss(batch, nets, step)
            return losses | ({term: losses[term] * torch.inf} if step.index == 3 else {})

    monkeypatch.setitem(OBJECTIVES, "tiny-bad", Bad)
    run = trainer("tiny-bad")
    with pytest.raises(NonFinite, match=f"step 4: loss term '{term}' is inf"):
        trained(run)
    assert run.step == 3


def test_gradient_that_is_no_number_names_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Root(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, torch.Tensor]:
            weight = next(nets.student.parameters())
            return {"root": (weight - weight.detach()).square().sum().sqrt()}  # 0, with an infinite slope

    monkeypatch.setitem(OBJECTIVES, "tiny-root", Root)
    with pytest.raises(NonFinite, match="step 1: the gradient of network 'student' has norm nan"):
        trained(trainer("tiny-root"))


def test_no_loss_term_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regress, "loss", lambda *_: {})
    with pytest.raises(FewstepError, match="Regress has no loss term"):
        trained(trainer())


def test_needs_name_both_sides_and_jvp_alone_is_no_error() -> None:
    with pytest.raises(FewstepError) as caught:
        check_needs(TwoTimes, Tiny, method="two", backbone="tiny")
    text = "method 'two' needs 'two_time', which backbone 'tiny' does not provide: it provides dense, jvp"
    assert text in str(caught.value)
    check_needs(engine_helpers.Transport, engine_helpers.NoJvp)


def test_objective_that_asks_for_jvp_of_a_network_without_it_still_trains() -> None:
    assert len(trained(trainer("tiny-transport", "tiny-nojvp", steps=3))) == 3


def test_half_precision_teacher_trains_as_float32() -> None:
    run = trainer(dtype=torch.float16)
    assert {p.dtype for p in run.nets.view.student.parameters()} == {torch.float32}
    assert {p.dtype for p in run.teacher.backbone.parameters()} == {torch.float16}


def test_bf16_autocast_trains_float32_weights() -> None:
    run = trainer(precision="bf16", steps=3)
    rows = trained(run)
    assert {p.dtype for p in run.nets.view.student.parameters()} == {torch.float32}
    assert rows[-1]["loss"]["fit"] == pytest.approx(trained(trainer(steps=3))[-1]["loss"]["fit"], rel=0.05)


def test_fp16_is_refused_off_cuda() -> None:
    with pytest.raises(FewstepError, match="got 'fp16'; accepted: fp32 or bf16 on cpu"):
        autocast("fp16", torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta-x"])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(FewstepError, match=f"train.device: got '{name}'"):
        pick_device(name)


def test_export_rate_must_exist() -> None:
    with pytest.raises(FewstepError, match=r"train\.export: got 0\.5; accepted: student, 0\.9"):
        trainer(ema=(0.9,), export=0.5)
    assert trainer("tiny-critic", export=0.9).nets.exported(0.9) is not None


def test_network_specs_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for specs, text in (
        ({"student": NetSpec(init="techer")}, "did you mean 'teacher'"),
        ({"pupil": NetSpec()}, "unknown network to export 'student'"),
        ({"student": NetSpec(build=lambda _: torch.nn.Identity())}, "nothing to train"),
    ):
        monkeypatch.setattr(Regress, "networks", lambda self, specs=specs: specs)
        with pytest.raises(FewstepError, match=text):
            trainer()


def test_a_network_may_start_from_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {"student": NetSpec(build=lambda _: Tiny(3)), "fake": NetSpec(init="student")}
    monkeypatch.setattr(Regress, "networks", lambda self: specs)
    nets = trainer().nets
    assert torch.equal(nets.view.fake.layers[0].weight, nets.view.student.layers[0].weight)
    assert nets.view.fake is not nets.view.student


def test_packed_batch_moves_with_its_layout() -> None:
    layout = Packed.of_lengths([2, 0, 3], torch.zeros(5, 3, dtype=torch.int64))
    batch = Batch(torch.zeros(5, 4), layout, Condition(torch.zeros(3, 1)))
    moved = batch.to(pick_device("auto"))
    assert isinstance(moved.layout, Packed)
    assert {t.device for t in (moved.layout.index, moved.layout.cu_seqlens, moved.layout.coords)} == {moved.x0.device}
    assert moved.layout.lengths.tolist() == [2, 0, 3]


def test_window_gives_means_since_the_last_row_and_survives_a_checkpoint() -> None:
    row = {"step": 1, "loss": {"a": 1.0}, "grad_norm": {"n": 2.0}, "lr": {"n": 0.1}, "total": 1.0}
    window = Window()
    window.add(row)
    window = Window(window.state)
    window.add({**row, "loss": {"b": 4.0}, "grad_norm": {"n": None}})
    window.add({**row, "loss": {"a": 2.0}})
    out = window.take({**row, "step": 3})
    assert (out["step"], out["loss"], out["total"]) == (3, {"a": 1.5, "b": 4.0}, 5.5)
    assert out["grad_norm"] == {"n": 2.0}
    assert window.state == Window().state


def test_teacher_is_never_trained() -> None:
    run = trainer(steps=5, lr=0.1)
    before = [p.clone() for p in run.teacher.parameters()]
    trained(run)
    assert all(torch.equal(a, b) for a, b in zip(before, run.teacher.parameters(), strict=True))
    assert not any(p.requires_grad for p in run.teacher.parameters())
    assert isinstance(run.nets.exported("student"), Backbone)
    assert TinyConfig().width == 8


class Adapted(Tiny):
    """A frozen base with one layer to train, as LoRA has."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__(width, dropout)
        self.layers[0].requires_grad_(False)


def test_parameters_that_a_backbone_freezes_stay_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine_helpers.BACKBONES, "tiny-adapted", Adapted)
    run = trainer("tiny-regress", "tiny-adapted", steps=3, lr=0.1, ema=(0.5,), weight_decay=0.1)
    student = run.nets.view.student
    before = {key: p.clone() for key, p in student.named_parameters()}
    trained(run)
    changed = {key for key, p in student.named_parameters() if not torch.equal(p, before[key])}
    assert changed == set(run.optimizers["student"].named) == {"layers.3.weight", "layers.3.bias"}
    assert student.layers[0].weight.grad is None
    assert not any(p.requires_grad for p in run.teacher.parameters())
    assert not any("layers.0" in key for key in run.optimizers["student"].state())


def test_a_network_frozen_as_a_whole_is_trained_as_a_whole() -> None:
    frozen = Tiny().requires_grad_(False)
    nets = Networks({"student": NetSpec()}, Teacher(frozen), torch.device("cpu"))
    assert len(nets.parameters["student"]) == 4


class Overflows(Regress):
    """Its gradient is never finite, though its loss is."""

    def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, torch.Tensor]:
        weight = next(nets.student.parameters())
        return {"root": (weight - weight.detach()).square().sum().sqrt()}


def test_fp16_that_never_becomes_finite_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "tiny-overflows", Overflows)
    run = trainer("tiny-overflows", steps=100)
    run.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(NonFinite, match=r"step 33: 33 updates of network 'student' in a row.*train\.precision=bf16"):
        trained(run)
    assert run.step == 32


def test_fp16_that_overflows_now_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sometimes(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, torch.Tensor]:
            return (Regress if step.index % 20 == 0 else Overflows).loss(self, batch, nets, step)  # type: ignore[arg-type]

    monkeypatch.setitem(OBJECTIVES, "tiny-sometimes", Sometimes)
    run = trainer("tiny-sometimes", steps=70)
    run.scaler = torch.amp.GradScaler("cpu")
    assert len(trained(run)) == 70


def test_only_a_read_of_total_is_noted() -> None:
    run = trainer()
    step = TrainStep(run, run.objective.phase(0), 0, 0)
    assert "Step" in repr(step)
    assert not run.reads_total
    assert step.total == 10
    assert run.reads_total
