"""The toy: exact velocities, fitted students, ragged data, the evaluation, and that distillation works on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import largest
from fewstep_mdt.config import VMConfig
from fewstep_mdt.vm import VelocityMatching
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from fewstep_toy.config import PointsConfig, Target, ToyConfig
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.mixture import TARGETS, expand_rows
from fewstep_toy.network import ToyFlow, fitted
from fewstep_toy.suite import ToySuite
from pydantic import ValidationError
from torch import Tensor

from fewstep.config.base import validate
from fewstep.config.presets import find
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.core.dataset import Dataset
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import NetSpec, Step
from fewstep.core.samplers import Sampler, euler, heun
from fewstep.core.suite import Unmeasured
from fewstep.core.times import TimeSampler, step_grid
from fewstep.engine.networks import Networks
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

QUICK = ToyConfig(target="moons", conditional=True, width=48, pretrain=150)
NAMES: tuple[Target, ...] = ("ring", "checkerboard", "moons", "gaussian")


def plane(count: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integrated_velocity(config: ToyConfig, x: Tensor, t: float, label: int | None) -> Tensor:
    """E[(1 - s) eps - x0 | x_t = x] by summing over a fine grid of x0: no formula of a mixture is used."""
    flow, s = AnalyticFlow(config).double(), config.sigma_min
    a, b = 1 - t, s + (1 - s) * t
    axis = torch.linspace(-4, 4, 321, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    means = flow.means if label is None else flow.means[flow.classes == label]
    density = torch.stack([torch.exp(-(x0 - m).square().sum(1) / (2 * flow.std**2)) for m in means]).sum(0)
    out = []
    for point in x:
        eps = (point - a * x0) / b
        weight = density * torch.exp(-eps.square().sum(1) / 2)
        out.append((weight[:, None] * ((1 - s) * eps - x0)).sum(0) / weight.sum())
    return torch.stack(out)


@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
@pytest.mark.parametrize("target", NAMES)
def test_velocity_is_the_posterior_mean(target: Target, sigma_min: float) -> None:
    config, x = ToyConfig(target=target, sigma_min=sigma_min), plane()
    flow = AnalyticFlow(config).double()
    for t in (0.3, 0.9):
        ours = flow(x, torch.full((5,), t, dtype=torch.float64), Condition(), Dense(5))
        assert largest(ours, integrated_velocity(config, x, t, None)) < 1e-6


@pytest.mark.parametrize("label", [0, 1])
def test_velocity_under_a_condition_is_that_of_its_class(label: int) -> None:
    config, x = ToyConfig(target="moons", conditional=True), plane()
    tokens = torch.eye(2, dtype=torch.float64)[[label] * 5]
    t_B = torch.full((5,), 0.4, dtype=torch.float64)
    ours = AnalyticFlow(config).double()(x, t_B, Condition(tokens), Dense(5))
    assert largest(ours, integrated_velocity(config, x, 0.4, label)) < 1e-6
    none = AnalyticFlow(config).double()(x, t_B, Condition(tokens).negative(), Dense(5))
    assert largest(none, integrated_velocity(config, x, 0.4, None)) < 1e-6


def test_velocity_is_finite_at_both_ends() -> None:
    for target in NAMES:
        flow = AnalyticFlow(ToyConfig(target=target))
        for t in (0.0, 1.0):
            v = flow(5 * plane().float(), torch.full((5,), t), Condition(), Dense(5))
            assert bool(v.isfinite().all())


@pytest.mark.parametrize("target", NAMES)
def test_samples_have_the_components_moments(target: Target) -> None:
    mixture, g = TARGETS[target](), torch.Generator().manual_seed(0)
    labels = mixture.draw_labels(20000, g)
    x = mixture.sample(labels, g)
    assert largest(x.mean(0), mixture.means.mean(0)) < 0.05
    assert largest(x.var(0), mixture.means.var(0, correction=0) + mixture.std**2) < 0.08
    for label in range(mixture.class_count):
        assert largest(x[labels == label].mean(0), mixture.means[mixture.classes == label].mean(0)) < 0.05
    assert float((mixture.most_probable(x) == labels).float().mean()) > 0.96
    shares = torch.bincount(labels) / len(labels)
    assert largest(shares, torch.full((mixture.class_count,), 1 / mixture.class_count)) < 0.02


def test_guidance_of_the_exact_teacher() -> None:
    teacher = ToyFlow.teacher(QUICK.model_copy(update={"guidance": 3.0}))
    x, t_B, cond = plane().float(), torch.full((5,), 0.5), Condition(torch.eye(2)[[0, 1, 0, 1, 0]])
    c, u = (teacher.backbone(x, t_B, k, Dense(5)) for k in (cond, cond.negative()))
    assert largest(teacher(x, t_B, cond, Dense(5)), u + 3 * (c - u)) < 1e-5
    assert all(not p.requires_grad for p in teacher.parameters())


def test_per_sample_vectors_reach_their_points() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    packed = expand_rows(values, torch.zeros(3, 2), Packed.of_lengths([1, 2]))
    assert packed.tolist() == [[1, 2], [3, 4], [3, 4]]
    sets = expand_rows(values, torch.zeros(2, 3, 2), Dense(2))
    assert sets.shape == (2, 3, 2)
    assert sets[1].tolist() == [[3, 4]] * 3


@pytest.mark.parametrize("config", [QUICK, ToyConfig(target="moons", width=48, pretrain=150)])
def test_packed_points_are_dense_points(config: ToyConfig) -> None:
    x, t_B, s_B = plane(6), torch.tensor([0.2, 0.7]).double(), torch.tensor([0.1, 0.3]).double()
    cond = Condition(torch.eye(2, dtype=torch.float64)) if config.conditional else Condition()
    network = ToyFlow(config).double()
    torch.nn.init.normal_(network.jump.weight)
    backbones: list[Backbone] = [network, AnalyticFlow(config).double()]
    for backbone in backbones:
        dense = backbone(x.reshape(2, 3, 2), t_B, cond, Dense(2), s_B=s_B)
        packed = backbone(x, t_B, cond, Packed.of_lengths([3, 3]), s_B=s_B)
        assert largest(dense.flatten(0, 1), packed) < 1e-12


# The student.


def test_the_student_of_a_closed_form_is_an_mlp_that_knows_it() -> None:
    student = AnalyticFlow(QUICK).student()
    assert isinstance(student, ToyFlow)
    exact, blank = AnalyticFlow(QUICK), ToyFlow(QUICK)
    g = torch.Generator().manual_seed(4)
    labels = exact.mixture.draw_labels(500, g)
    cond, t_B = Condition(torch.eye(2)[labels]), torch.rand(500, generator=g)
    noise = torch.randn(500, 2, generator=g)
    x_t = Interpolant().interpolate(exact.mixture.sample(labels, g), noise, t_B, Dense(500))

    def error(network: Backbone, cond: Condition) -> float:
        with torch.no_grad():
            return float((network(x_t, t_B, cond, Dense(500)) - exact(x_t, t_B, cond, Dense(500))).square().mean())

    for wanted in (cond, cond.negative()):
        assert error(student, wanted) < 0.25 * error(blank, wanted)


def test_fitting_depends_on_the_seed_alone() -> None:
    one, same = fitted(QUICK), fitted(QUICK.model_copy(update={"guidance": 2.0}))
    other = fitted(QUICK.model_copy(update={"seed": 1}))
    assert one is not same
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert largest(one.first.weight, other.first.weight) > 0.01
    state = torch.random.get_rng_state()
    fitted(QUICK.model_copy(update={"seed": 2, "pretrain": 1}))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_engine_starts_from_the_teachers_student() -> None:
    specs = {"student": NetSpec(ema=(0.9,)), "critic": NetSpec(init="teacher")}
    nets = Networks(specs, ToyFlow.teacher(QUICK), torch.device("cpu"))
    for name in ("student", "critic"):
        network = nets.trained[name]
        assert isinstance(network, ToyFlow)
        assert all(p.requires_grad for p in network.parameters())
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fitted(QUICK).parameters(), strict=True))
    assert not any(p.requires_grad for p in nets.teacher.parameters())


def test_a_learned_teacher_is_copied() -> None:
    teacher = ToyFlow.teacher(QUICK.model_copy(update={"teacher": "learned"}))
    assert isinstance(teacher.backbone, ToyFlow)
    student = teacher.backbone.student()
    assert student is not teacher.backbone
    x, t_B = plane().float(), torch.full((5,), 0.5)
    assert torch.equal(student(x, t_B, Condition(), Dense(5)), teacher(x, t_B, Condition(), Dense(5)))


def test_second_time_is_that_of_velocity_where_both_agree() -> None:
    network = ToyFlow(QUICK)
    torch.nn.init.normal_(network.jump.weight)
    x, t_B = plane().float(), torch.full((5,), 0.5)
    one = network(x, t_B, Condition(), Dense(5))
    assert largest(network(x, t_B, Condition(), Dense(5), s_B=t_B), one) == 0
    assert largest(network(x, t_B, Condition(), Dense(5), s_B=0 * t_B), one) > 0.01


@pytest.mark.parametrize("half", [False, True])
def test_saved_students_come_back(tmp_path: Path, half: bool) -> None:
    student = fitted(QUICK)
    student.save(tmp_path, half=half)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    back = ToyFlow.load(tmp_path)
    assert back.config == QUICK
    assert largest(list(back.parameters()), list(student.parameters())) <= (2e-3 if half else 0)


@pytest.mark.parametrize("damage", ["missing", "json", "weights", "config"])
def test_unreadable_students_are_refused(tmp_path: Path, damage: str) -> None:
    fitted(QUICK).save(tmp_path)
    if damage == "missing":
        (tmp_path / "model.json").unlink()
    elif damage == "json":
        (tmp_path / "model.json").write_text("{")
    elif damage == "weights":
        ToyFlow(ToyConfig(width=8)).save(tmp_path)
        (tmp_path / "model.json").write_text((tmp_path / "model.json").read_text().replace("8", "9"))
    else:
        (tmp_path / "model.json").write_text('{"config": {"wdith": 3}}')
    with pytest.raises(FewstepError):
        ToyFlow.load(tmp_path)


def test_wrong_condition_is_named() -> None:
    with pytest.raises(FewstepError, match=r"condition tokens \[5, 2\], got \[5, 3\]"):
        ToyFlow(QUICK)(plane().float(), torch.ones(5), Condition(torch.zeros(5, 3)), Dense(5))


def test_only_one_gaussian_has_a_map_in_closed_form() -> None:
    with pytest.raises(FewstepError, match="accepted: 'gaussian'"):
        GaussianMap(ToyConfig(target="ring"))


# Data and evaluation.


def points(layout: str = "dense", toy: ToyConfig = QUICK, **keys: Any) -> ToyPoints:
    return ToyPoints(validate(PointsConfig, {"layout": layout, "size": 300, **keys}), AnalyticFlow(toy))


def test_dense_batches() -> None:
    data = points()
    batch = data.training_batch(0, 16, seed=0)
    assert batch.x0.shape == (16, 2)
    assert isinstance(batch.layout, Dense)
    assert batch.cond.tokens is not None
    assert batch.cond.tokens.shape == (16, 2)
    labels = batch.cond.tokens.argmax(1)
    assert float((data.mixture.most_probable(batch.x0) == labels).float().mean()) == 1.0
    assert len(data) == 300
    assert torch.equal(batch.x0, points().training_batch(0, 16, seed=0).x0)
    assert not torch.equal(batch.x0, points(seed=1).training_batch(0, 16, seed=0).x0)


def test_packed_batches_are_ragged_sets_of_one_class() -> None:
    data = points("packed", points=[2, 5])
    batch = data.batch([4, 7, 1, 250], torch.Generator())
    layout = batch.layout
    assert isinstance(layout, Packed)
    assert layout.lengths.tolist() == data.lengths[[4, 7, 1, 250]].tolist()
    assert len(batch.x0) == sum(layout.lengths)
    assert set(data.lengths.tolist()) == {2, 3, 4, 5}
    assert batch.cond.tokens is not None
    expected = batch.cond.tokens.argmax(1)[layout.index]
    assert torch.equal(data.mixture.most_probable(batch.x0), expected)
    alone = data.batch([7], torch.Generator())
    assert torch.equal(alone.x0, batch.x0[layout.index == 1])


def test_held_out_samples_are_no_training_samples() -> None:
    data = points(held_out=50)
    held, trained = data.held_out(), data.batch(list(range(300)), torch.Generator())
    assert held.x0.shape == (50, 2)
    assert float(torch.cdist(held.x0, trained.x0).min()) > 0
    assert data.held_out(7).x0.tolist() == held.x0[:7].tolist()
    assert held.cond.tokens is not None
    assert torch.equal(data.held_out_labels(), held.cond.tokens.argmax(1))


def test_unconditional_data_has_no_condition() -> None:
    assert points(toy=ToyConfig()).held_out().cond.tokens is None
    with pytest.raises(ValidationError, match="in order"):
        PointsConfig(points=(4, 2))


def suite_of(toy: ToyConfig = QUICK, **keys: Any) -> ToySuite:
    found = ToyFlow.suite(toy, points(toy=toy, held_out=1000, **keys))
    assert isinstance(found, ToySuite)
    return found


def test_measures_know_good_from_bad() -> None:
    suite = suite_of()
    truth = suite.prompts().x0
    perfect = suite.measure(truth, truth)
    assert perfect["sliced_w2"] < 0.12
    assert abs(perfect["mmd"]) < 5e-3
    assert perfect["teacher_rms"] == 0
    assert perfect["wrong_class"] < 0.01
    moved = suite.measure(truth + torch.tensor([0.6, 0.0]), truth)
    assert moved["sliced_w2"] == pytest.approx(0.6 / 2**0.5, abs=0.05)
    assert moved["teacher_rms"] == pytest.approx(0.6)
    assert moved["mmd"] > 0.03
    swapped = suite.measure(truth.flip(0), truth)
    assert swapped["wrong_class"] == pytest.approx(0.5, abs=0.06)
    assert set(perfect) == set(suite.legend) == suite.lower_is_better
    assert suite.headline in perfect
    assert "wrong_class" not in suite_of(ToyConfig()).measure(truth, truth)


@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_suite_runs_end_to_end(layout: str, tmp_path: Path) -> None:
    suite, teacher = suite_of(layout=layout), ToyFlow.teacher(QUICK)
    prompts = suite.prompts(200)
    noise = torch.randn(prompts.x0.shape, generator=torch.Generator().manual_seed(0))
    x = euler(teacher, noise, prompts.cond, prompts.layout, step_grid(25), Step(0, Interpolant()))
    objects = suite.decode(x, prompts.layout)
    assert suite.measure(objects, objects)["wrong_class"] < 0.02
    suite.sheet([("teacher", objects), ("again", objects)], tmp_path / "sheet.png", 8)
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_there_is_no_suite_for_foreign_data() -> None:
    class Other(Dataset):
        def __init__(self) -> None: ...
        def __len__(self) -> int:
            return 0

        def batch(self, indices: list[int], generator: torch.Generator) -> Any: ...

    assert ToyFlow.suite(QUICK, Other()) is None


def test_samples_of_a_backbone_without_a_suite_are_an_array(tmp_path: Path) -> None:
    suite = Unmeasured(ToyPoints(ToyPoints.Config(), ToyFlow(QUICK)))
    batch = suite.prompts(3)
    assert batch.x0.shape == (3, 2)
    (file,) = suite.write(suite.decode(batch.x0, batch.layout), tmp_path / "new")
    assert file == tmp_path / "new" / "samples.npz"
    with np.load(file) as arrays:
        assert np.array_equal(arrays["samples"], batch.x0.numpy())
    with pytest.raises(FewstepError, match=r"a name ending in \.npz"):
        suite.write(batch.x0, tmp_path / "samples.png")


def test_registered() -> None:
    backbone, data = registry().get("backbone", "toy"), registry().get("dataset", "toy")
    assert backbone.load() is ToyFlow
    assert backbone.load_config() is ToyConfig
    assert (data.load(), data.load_config()) == (ToyPoints, PointsConfig)
    assert ToyFlow.dataset == "toy"


@pytest.mark.parametrize("method", [entry.name for entry in registry().entries("objective")])
def test_default_preset_fits_every_method(method: str) -> None:
    entry = registry().get("objective", method)
    tables = [preset.read() for preset in find(entry, registry().get("backbone", "toy"), None)]
    assert any("train" in table for table in tables)
    for table in tables:
        validate(TrainConfig, table.get("train", {}))
        validate(entry.load_config(), table.get("objective", {}))


# The whole of it.


def distance_to_teacher(student: Backbone, teacher: Any, data: ToyPoints, sampler: Sampler = euler) -> float:
    """Root mean square distance of one-step results to the teacher's 50-step ones."""
    held = data.held_out(400)
    noise = torch.randn(held.x0.shape, generator=torch.Generator().manual_seed(0))
    end = heun(teacher, noise, held.cond, held.layout, step_grid(50), Step(0, Interpolant()))
    one = sampler(student, noise, held.cond, held.layout, step_grid(1), Step(0, Interpolant()))
    return float((one - end).square().sum(1).mean().sqrt())


def test_velocity_matching_moves_one_step_to_the_teacher() -> None:
    toy = ToyConfig(target="moons", conditional=True, width=64, pretrain=300)
    teacher, data = ToyFlow.teacher(toy), points(toy=toy, size=5000)
    config = VMConfig(d_norm="none", t=TimeSampler(kind="uniform"))
    train = TrainConfig(steps=800, batch_size=256, lr=2e-3, lr_schedule="cosine", checkpoint_every=800)
    trainer = Trainer(VelocityMatching(config), teacher, data, train, say=lambda line: None)
    before = distance_to_teacher(trainer.nets.exported("student"), teacher, data)
    trainer.train(lambda row: None, lambda: None)
    after = distance_to_teacher(trainer.nets.exported("student"), teacher, data)
    assert before > 0.9
    assert after < 0.5 * before


def test_exact_velocity_takes_any_leading_shape() -> None:
    mixture, x = TARGETS["ring"](), plane(6).float()
    t = torch.full((6, 1), 0.5)
    flat = mixture.velocity(Interpolant(), x, t)
    shaped = mixture.velocity(Interpolant(), x.reshape(2, 3, 2), t.reshape(2, 3, 1))
    assert largest(flat, shaped.reshape(6, 2)) < 1e-6
