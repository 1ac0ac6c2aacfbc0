"""MDT against the published trainer's numbers, and what its keys do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import RING, Given, draws, exact_nets, gradients, largest, random_student, ring_batch
from fewstep_mdt import plugin
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT, VelocityDistillation
from fewstep_mdt.vm import VelocityMatching
from golden.cases import Check
from golden.mdt import cases
from golden.run import main
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.config.base import read_toml
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import step_grid

DATA = Path(__file__).parent / "golden" / "data"
DENSE = DATA / "mdt" / "dense_a.json"
RECORD: dict[str, Any] = json.loads(DENSE.read_text(encoding="utf-8"))
PRESETS = Path(plugin.__file__).parent / "presets"


@pytest.fixture(scope="module")
def scenarios() -> dict[str, Any]:
    return {case.name.rpartition("/")[2]: case for case in cases(DATA, DENSE, RECORD)}


@pytest.mark.parametrize("name", list(RECORD["scenarios"]))
def test_published_numbers(scenarios: dict[str, Any], name: str) -> None:
    """Targets, losses, logged bins, all gradient norms and full gradients, to 1e-4 of the largest value."""
    assert not scenarios[name].missing
    checks: list[Check] = scenarios[name].run()
    assert [c for c in checks if not c.ok] == []
    assert len(checks) > 50


def test_there_are_all_scenarios() -> None:
    assert len(RECORD["scenarios"]) == 22
    found = {case.name for case in cases(DATA, DATA / "mdt" / "schedules.json", load("schedules"))}
    assert found == {"mdt/schedules/sample_t", "mdt/schedules/target_t"}


def test_published_time_tables() -> None:
    for case in cases(DATA, DATA / "mdt" / "schedules.json", load("schedules")):
        assert case.run is not None
        checks = case.run()
        assert len(checks) >= 9
        assert all(c.ok for c in checks)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "mdt" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("scenario", "key", "factor"),
    [
        ("discrete_dnorm_cfg0-0", "vm.v_tgt", 1.01),
        ("discrete_dnorm_cfg0-0", "vd.x_fake", 1.01),
        ("cm_mp4_cfg3-3", "grad.out_layer.weight", 1.001),
        ("continuous_nodnorm_cfg3-3", "vd.v_pred", 1.001),
    ],
)
def test_a_wrong_tensor_is_seen(tmp_path: Path, scenario: str, key: str, factor: float) -> None:
    shutil.copytree(DATA / "mdt", tmp_path / "mdt")
    path = tmp_path / "mdt" / "dense_a.safetensors"
    tensors = load_file(path)
    tensors[f"{scenario}.{key}"] *= factor
    save_file(tensors, path)
    assert main([str(tmp_path), "--only", scenario]) == 1


@pytest.mark.parametrize(
    "change", [{"cfg_teacher_vd": 3.5}, {"interval": 0.011}, {"lambda_vd": 0.9}, {"d_norm": False}]
)
def test_another_setting_has_other_numbers(tmp_path: Path, change: dict[str, Any]) -> None:
    """The record is sharp enough to see every knob."""
    shutil.copytree(DATA / "mdt", tmp_path / "mdt")
    record = load("dense_a")
    record["scenarios"]["discrete_dnorm_cfg3-3"]["settings"].update(change)
    (tmp_path / "mdt" / "dense_a.json").write_text(json.dumps(record), encoding="utf-8")
    assert main([str(tmp_path), "--only", "discrete_dnorm_cfg3-3"]) == 1


def test_unknown_settings_are_named_and_not_run(tmp_path: Path) -> None:
    record = {"model": RECORD["model"], "defaults": {}, "scenarios": {"a": {"settings": {"novel": 1}}}}
    (case,) = cases(tmp_path, tmp_path / "mdt.json", record)
    assert case.run is None
    assert "novel" in case.missing


# What the keys do, on a ring of Gaussians with a condition.


@pytest.fixture
def batch() -> Batch:
    return ring_batch()


def given(batch: Batch, seed: int = 0) -> Given:
    return Given(draws(batch.x0, batch.layout.batch_size, seed))


def losses(config: MDTConfig, batch: Batch) -> dict[str, Tensor]:
    return means(MDT(config).loss(batch, exact_nets(random_student(RING), RING), given(batch)))


def test_sum_has_the_terms_of_its_parts(batch: Batch) -> None:
    config, nets = MDTConfig(lambda_vm=0.7, lambda_vd=0.3), exact_nets(random_student(RING), RING)
    both = means(MDT(config).loss(batch, nets, Step(3, Interpolant())))
    alone = means(VelocityMatching(config).loss(batch, nets, Step(3, Interpolant())))
    alone |= means(VelocityDistillation(config).loss(batch, nets, Step(3, Interpolant())))
    assert list(both) == ["vm", "vd"]
    assert {name: value.item() for name, value in both.items()} == pytest.approx(
        {name: value.item() for name, value in alone.items()}, rel=1e-6
    )


def test_terms_share_times_and_noise(batch: Batch) -> None:
    config, nets = MDTConfig(), exact_nets(random_student(RING), RING)
    vm, vd = MDT(config).objectives
    assert isinstance(vm, VelocityMatching)
    assert isinstance(vd, VelocityDistillation)
    step = Step(3, Interpolant())
    one, two = vm.targets(batch, nets, step), vd.targets(batch, nets, step)
    assert torch.equal(one.t_B, two.t_B)
    assert one.v_pred.requires_grad
    assert not two.v_pred.requires_grad
    assert not one.v_tgt.requires_grad
    assert not two.v_tgt.requires_grad
    assert two.x_fake is not None
    assert two.x_fake.requires_grad


def test_weights_scale_their_terms_and_0_leaves_one_out(batch: Batch) -> None:
    base = losses(MDTConfig(lambda_vm=1.0, lambda_vd=1.0), batch)
    scaled = losses(MDTConfig(lambda_vm=0.25, lambda_vd=3.0), batch)
    assert scaled["vm"].item() == pytest.approx(0.25 * base["vm"].item())
    assert scaled["vd"].item() == pytest.approx(3 * base["vd"].item())
    assert list(losses(MDTConfig(lambda_vd=0.0), batch)) == ["vm"]
    assert list(losses(MDTConfig(lambda_vm=0.0), batch)) == ["vd"]
    with pytest.raises(ValidationError, match="nothing is left"):
        MDTConfig(lambda_vm=0.0, lambda_vd=0.0)
    with pytest.raises(ValidationError, match="nothing is left"):
        VMConfig(lambda_vm=0.0)


def test_distillation_waits_for_matching(batch: Batch) -> None:
    nets = exact_nets(random_student(RING), RING)
    for index, terms in ((2, ["vm"]), (3, ["vm", "vd"])):
        step = Step(index, Interpolant())
        assert list(means(MDT(MDTConfig(vd_after=3)).loss(batch, nets, step))) == terms
        # Without matching there is nothing to wait for.
        assert list(means(MDT(MDTConfig(vd_after=3, lambda_vm=0)).loss(batch, nets, step))) == ["vd"]


def test_distillation_gradient_is_the_written_one(batch: Batch) -> None:
    """2 lambda (v_pred - v_tgt) . dF(z', 1) / elements, with (1 - t) where the paper has it."""
    for factor in (False, True):
        student = random_student(RING)
        nets, step = exact_nets(student, RING), given(batch)
        objective = VelocityDistillation(MDTConfig(lambda_vd=0.3, vd_factor=factor, kind="continuous"))
        ours = gradients(objective.loss(batch, nets, step), student)
        found = objective.targets(batch, nets, step)
        fake = student(step.draws["noise_fake"], torch.ones(6, dtype=torch.float64), batch.cond, batch.layout)
        weight = 1 - found.t_B[:, None] if factor else 1.0
        written = 0.3 * 2 * weight * (found.v_pred - found.v_tgt) / fake.numel()
        theirs = gradients({"vd": (written.detach() * fake).sum()}, student)
        assert largest(ours, theirs) < 1e-12
        assert max(float(g.abs().max()) for g in ours) > 1e-3


def test_the_factor_moves_the_gradient_and_not_the_value(batch: Batch) -> None:
    student = random_student(RING)
    nets = exact_nets(student, RING)
    found = {}
    for factor in (False, True):
        config = MDTConfig(vd_factor=factor)
        loss = means(VelocityDistillation(config).loss(batch, nets, given(batch)))
        found[factor] = loss["vd"].item(), gradients(loss, student)
    assert found[False][0] == found[True][0]
    assert largest(found[False][1], found[True][1]) > 1e-3


def test_guidance_is_counted_as_strength(batch: Batch) -> None:
    """w = 0 is the conditional velocity, w = 2 is 3 c - 2 u; VM reads its own key."""
    nets = exact_nets(random_student(RING), RING)
    field = nets.teacher.backbone

    def target(w: float) -> Tensor:
        config = MDTConfig(guidance_vm=w, guidance_vd=77.0, interval=0.5, d_norm="sample", d_norm_constant=1e12)
        return VelocityMatching(config).targets(batch, nets, step).v_tgt

    step = given(batch)
    t_B = 0.5 + 0.5 * step.draws["t"]
    x_t = step.interpolant.interpolate(batch.x0, step.draws["noise"], t_B, batch.layout)
    c, u = (field(x_t, t_B, cond, batch.layout) for cond in (batch.cond, batch.cond.negative()))
    assert largest(target(0.0), c) < 1e-9
    assert largest(target(2.0), 3 * c - 2 * u) < 1e-9


def test_without_a_strength_the_teacher_guides_as_it_is_sampled(batch: Batch) -> None:
    field = exact_nets(random_student(RING), RING).teacher.backbone
    nets = Nets({"student": random_student(RING), "teacher": Teacher(field, Guidance(3.0, (0.6, 1.0)))}, {})
    config = VMConfig(interval=0.01, d_norm="sample", d_norm_constant=1e12)
    found = VelocityMatching(config).targets(batch, nets, given(batch))
    x_t = Interpolant().interpolate(batch.x0, given(batch).draws["noise"], found.t_B, batch.layout)
    c, u = (field(x_t, found.t_B, cond, batch.layout) for cond in (batch.cond, batch.cond.negative()))
    inside = (found.t_B >= 0.6)[:, None]
    assert 0 < inside.sum() < 6
    assert largest(found.v_tgt, torch.where(inside, 3 * c - 2 * u, c)) < 1e-9


def test_a_list_of_guidance_is_drawn_from_each_step(batch: Batch) -> None:
    objective = MDT(MDTConfig(guidance_vm=(0.0, 5.0), guidance_vd=(0.0, 5.0), d_norm="sample"))
    fixed = {w: MDT(MDTConfig(guidance_vm=w, guidance_vd=w, d_norm="sample")) for w in (0.0, 5.0)}
    nets = exact_nets(random_student(RING), RING)
    seen: dict[str, set[float]] = {"vm": set(), "vd": set()}
    pairs = set()
    for index in range(24):
        got = means(objective.loss(batch, nets, Step(index, Interpolant())))
        assert got == means(objective.loss(batch, nets, Step(index, Interpolant())))
        drawn = {}
        for term, value in got.items():
            (w,) = [
                w for w, o in fixed.items() if means(o.loss(batch, nets, Step(index, Interpolant())))[term] == value
            ]
            seen[term].add(w)
            drawn[term] = w
        pairs.add((drawn["vm"], drawn["vd"]))
    assert seen == {"vm": {0.0, 5.0}, "vd": {0.0, 5.0}}
    assert len(pairs) > 2  # one draw a term, not one a step
    with pytest.raises(ValidationError):
        MDTConfig(guidance_vm=())
    with pytest.raises(ValidationError):
        MDTConfig(guidance_vm=-1.0)
    for key in ("guidance_vm", "guidance_vd"):
        with pytest.raises(ValidationError, match=f"no teacher that could be guided: {key} must be none"):
            MDTConfig(velocity="data", **{key: 2.0})


class Watch(torch.nn.Module):
    """Records the conditions that a network is given."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Any] = []

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Dense, **more: Any) -> Any:
        self.seen.append(cond.tokens)
        return self.network(x, t_B, cond, layout, **more)


def test_conditions_are_dropped_for_the_student_alone_and_anew_at_each_place() -> None:
    g = torch.Generator().manual_seed(1)
    tokens = torch.nn.functional.one_hot(torch.randint(8, (200,), generator=g), 8).double()
    batch = Batch(torch.randn(200, 2, generator=g, dtype=torch.float64), Dense(200), Condition(tokens))
    nets = exact_nets(Watch(random_student(RING)), RING)
    teacher = nets._modules["teacher"] = Watch(nets.teacher)
    means(MDT(MDTConfig(p_uncond=0.3)).loss(batch, nets, Step(0, Interpolant())))
    assert all(torch.equal(seen, tokens) for seen in teacher.seen)
    vm, vm_before, fake, vd, vd_before = [seen.sum(1) == 0 for seen in nets.student.seen]
    assert torch.equal(vm, vm_before)
    assert torch.equal(vd, vd_before)
    for place in (vm, fake, vd):
        assert 0.2 < place.double().mean() < 0.4
    assert not torch.equal(vm, vd)
    assert not torch.equal(vm, fake)
    assert not torch.equal(vd, fake)


def test_without_a_teacher_the_datas_velocity_is_matched(batch: Batch) -> None:
    step = given(batch)
    config = VMConfig(velocity="data", d_norm_constant=1e12)
    target = VelocityMatching(config).targets(batch, exact_nets(random_student(RING), RING), step).v_tgt
    assert largest(target, step.draws["noise"] - batch.x0) < 1e-9


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_phases_shorten_the_span(batch: Batch, kind: str) -> None:
    nets = exact_nets(random_student(RING), RING)
    one, two = (
        VelocityMatching(VMConfig(kind=kind, d_norm="none", guidance_vm=0.0, multiphase=m)).targets(
            batch, nets, given(batch)
        )
        for m in (1, 2)
    )
    early = two.end_B == 0
    assert bool(early.any())
    assert bool((~early).any())
    assert set(two.end_B.tolist()) == {0.0, 0.5}
    assert largest(one.v_tgt[early], two.v_tgt[early]) == 0
    assert bool(((one.v_tgt - two.v_tgt)[~early].abs() > 1e-6).all())


def test_phase_ends_are_warped_as_the_samplers_times(batch: Batch) -> None:
    nets, step = exact_nets(random_student(RING), RING), given(batch)
    step.draws["t"] = torch.linspace(0.1, 0.95, 6, dtype=torch.float64)
    found = VelocityMatching(VMConfig(multiphase=2, rescale_t=3.0)).targets(batch, nets, step)
    assert found.end_B.tolist() == pytest.approx([0.75 if t - 0.02 >= 0.75 else 0.0 for t in found.t_B.tolist()])
    assert len(set(found.end_B.tolist())) == 2


def test_matching_by_the_pseudo_huber_distance(batch: Batch) -> None:
    """lambda (sqrt(m + c^2) - c), m the mean square of a sample's error."""
    nets = exact_nets(random_student(RING), RING)
    config = VMConfig(loss="pseudo-huber", huber=0.2, lambda_vm=3.0, reduction="sample")
    found = VelocityMatching(config).targets(batch, nets, given(batch))
    wanted = 3 * ((found.v_pred - found.v_tgt).square().mean(1) + 0.04).sqrt() - 3 * 0.2
    assert largest(VelocityMatching(config).loss(batch, nets, given(batch))["vm"], wanted) < 1e-12


def test_distillation_knows_the_path_of_its_samples_and_reduces_by_sample(batch: Batch) -> None:
    nets, step = exact_nets(random_student(RING), RING), given(batch)
    objective = VelocityDistillation(MDTConfig(lambda_vd=0.3, reduction="sample"))
    found = objective.targets(batch, nets, step)
    assert found.x_fake is not None
    assert largest(found.v_path, step.draws["noise"] - found.x_fake) < 1e-12
    wanted = 0.3 * (found.v_pred - found.v_tgt).square().mean(1)
    assert largest(objective.loss(batch, nets, step)["vd"], wanted) < 1e-12


def test_times_and_the_datas_velocity_respect_sigma_min(batch: Batch) -> None:
    """t from sigma_min on, and (1 - sigma_min) eps - x0."""
    step = Given(given(batch).draws, interpolant=Interpolant(0.2))
    config = VMConfig(velocity="data", kind="continuous", d_norm_constant=1e12)
    found = VelocityMatching(config).targets(batch, exact_nets(random_student(RING), RING), step)
    assert largest(found.t_B, 0.2 + 0.8 * step.draws["t"]) < 1e-12
    assert largest(found.v_tgt, 0.8 * step.draws["noise"] - batch.x0) < 1e-9


def test_the_exact_derivative_has_one_factor(batch: Batch) -> None:
    """``difference`` is of the finite difference alone."""
    nets = exact_nets(random_student(RING), RING)
    one, two = (
        VelocityMatching(VMConfig(kind="continuous", difference=way)).targets(batch, nets, given(batch))
        for way in ("published", "euler")
    )
    assert torch.equal(one.v_tgt, two.v_tgt)


def test_contract() -> None:
    assert MDT(MDTConfig()).contract().model_dump() == {
        "sampler": "euler",
        "noise": None,
        "steps": (1, 2, 4),
        "times": (),
        "rescale_t": 1.0,
        "guidance": 1.0,
        "strength": None,
        "strengths": None,
        "two_time": False,
    }
    assert VelocityMatching(VMConfig(multiphase=2)).contract().steps == (2,)
    phased = VelocityMatching(VMConfig(multiphase=3, rescale_t=3.0)).contract()
    assert phased.steps == (3,)
    assert phased.grid(3) == step_grid(3, 3.0)
    assert VelocityMatching(VMConfig(sampler="consistency")).contract().sampler == "consistency"
    with pytest.raises(ValidationError, match="use 'euler'"):
        VMConfig(sampler="consistency", multiphase=2)


@pytest.mark.parametrize("name", ["mdt-vm", "mdt-vd"])
def test_published_preset(name: str) -> None:
    table = read_toml(PRESETS / name / "paper.toml")
    assert set(table) == {"objective", "train"}
    train = TrainConfig(**table["train"])
    assert (train.steps, train.batch_size, train.lr) == (6000, 256, 4e-8)
    assert (train.weight_decay, train.ema, train.export, train.clip) == (0.0, (0.9999,), 0.9999, "adaptive")
    config = MDTConfig(**table["objective"]) if name == "mdt-vd" else VMConfig(**table["objective"])
    assert (config.kind, config.interval, config.d_norm, config.d_norm_constant) == ("discrete", 0.01, "sample", 0.1)
    assert (config.t.kind, config.t.mean, config.t.std) == ("logit-normal", 1.0, 1.0)
    assert (config.guidance_vm, config.lambda_vm, config.p_uncond) == (40.0, 1.0, 0.0)
    if isinstance(config, MDTConfig):
        assert (config.guidance_vd, config.lambda_vd, config.vd_factor) == (100.0, 1.0, False)


def test_dropped_conditions_are_a_function_of_the_step(batch: Batch) -> None:
    objective, nets = MDT(MDTConfig(p_uncond=0.5)), exact_nets(random_student(RING), RING)
    step = Step(0, Interpolant())
    once, again, later = (means(objective.loss(batch, nets, s)) for s in (step, step, Step(1, Interpolant())))
    assert once == again
    assert once["vm"] != later["vm"]
