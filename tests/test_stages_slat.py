"""Objectives on the structured-latent flow: the one implementation on packed voxels, against one sample at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_consistency.cm import Consistency, PhasedConsistency
from fewstep_consistency.config import ConsistencyConfig, PhasedConfig
from fewstep_distribution.config import FDistillConfig, LADDConfig
from fewstep_distribution.f_distill import FDistill
from fewstep_distribution.ladd import LADD
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT
from fewstep_mdt.vm import VelocityMatching
from fewstep_trajectory.config import PiFlowConfig
from fewstep_trajectory.pi_flow import PiFlow
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.pipeline import source
from fewstep_trellis.slat import SLatConfig, StructuredLatentFlow
from slat_helpers import CHANNELS, LENGTHS, slat_batch, slat_flow
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, Objective, Step, means
from fewstep.core.times import TimeSampler
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError
from fewstep.testing import check_backbone, check_objective

METHODS: dict[str, tuple[type[Objective[Any]], Strict]] = {
    "mdt-vd": (MDT, MDTConfig()),
    "mdt-vd, published": (MDT, MDTConfig(d_norm="sample", guidance_vm=4.0, guidance_vd=10.0, lambda_vd=1.0)),
    "mdt-vd, continuous": (MDT, MDTConfig(kind="continuous", vd_factor=True)),
    "mdt-vd, cm in 4 phases": (MDT, MDTConfig(kind="cm", multiphase=4)),
    "mdt-vm": (VelocityMatching, VMConfig(d_norm="none")),
    "cm": (Consistency, ConsistencyConfig()),
    "cm, continuous": (Consistency, ConsistencyConfig(kind="continuous", loss="l2")),
    "pcm": (PhasedConsistency, PhasedConfig()),
}
OTHERS: dict[str, tuple[type[Objective[Any]], Strict]] = {  # with heads on inner layers, or a policy
    "f-distill": (FDistill, FDistillConfig()),
    "ladd": (LADD, LADDConfig()),
    "pi-flow": (PiFlow, PiFlowConfig()),
}


def test_the_backbone_is_what_the_core_relies_on() -> None:
    check_backbone(slat_flow(), slat_batch((9, 20, 1)))
    check_backbone(slat_flow(), slat_batch())  # a sample without voxels in the middle


@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
def test_every_objective_passes_the_kit_on_packed_latents(name: str) -> None:
    """One pass, two passes and finite differences agree; draws, gradients and terms are as the engine relies on."""
    cls, config = (METHODS | OTHERS)[name]
    check_objective(cls, config, backbone=slat_flow(), batch=slat_batch())


class OneByOne(Backbone):
    """The same network on dense samples [1, T, C], as if there were no packing."""

    def __init__(self, inner: StructuredLatentFlow, coords: Tensor) -> None:
        super().__init__()
        self.inner, self.coords = inner, coords

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert isinstance(layout, Dense)
        out: Tensor = self.inner(x[0], t_B, cond, Packed.of_lengths([x.shape[1]], self.coords))
        return out[None]


class Part(Step):
    """A step whose draws are a sample's part of a batch's draws."""

    def __init__(self, whole: Step, batch: Batch, sample: int) -> None:
        super().__init__(index=0, interpolant=whole.interpolant)
        self.whole, self.batch, self.row = whole, batch, torch.tensor([sample])

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        return self.batch.layout.select(self.whole.randn_like(self.batch.x0, name), self.row)[0][None]

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        return self.whole.times(self.batch.layout, sampler, name)[self.row]


def nets(student: Backbone, teacher: Backbone, cls: type[Objective[Any]]) -> Nets:
    return Nets({"student": student, "teacher": Teacher(teacher, Guidance(2.5, (0.3, 0.8)))}, {})


@pytest.mark.parametrize("reduction", ["element", "sample"])
@pytest.mark.parametrize("name", METHODS)
def test_packed_is_every_sample_by_itself(name: str, reduction: str) -> None:
    """Loss terms and gradients: "element" weighs samples by their voxels, "sample" alike. The teacher's interval holds
    some samples' times and not others'."""
    cls, config = METHODS[name]
    objective = cls(config.model_copy(update={"reduction": reduction}))
    lengths = tuple(n for n in LENGTHS if n)
    batch = slat_batch(lengths)
    step = Step(index=0, interpolant=Interpolant(1e-5), seed=4)
    models = [slat_flow(seed).double() for seed in (0, 1)]
    losses = means(objective.loss(batch, nets(*models, cls), step))
    torch.stack(list(losses.values())).sum().backward()
    packed = [p.grad.clone() for p in models[0].parameters() if p.grad is not None]
    models[0].zero_grad()
    total = dict.fromkeys(losses, 0.0)
    for sample, length in enumerate(lengths):
        one = batch.select(torch.tensor([sample]))
        assert isinstance(one.layout, Packed)
        pair = [OneByOne(model, one.layout.coords) for model in models]  # type: ignore[arg-type]
        alone = Batch(one.x0[None], Dense(1), one.cond)
        found = means(objective.loss(alone, nets(*pair, cls), Part(step, batch, sample)))
        weight = length / sum(lengths) if reduction == "element" else 1 / len(lengths)
        (weight * torch.stack(list(found.values())).sum()).backward()
        total = {key: total[key] + weight * float(value.detach()) for key, value in found.items()}
    for key, value in losses.items():
        assert float(value.detach()) == pytest.approx(total[key], rel=1e-11)
    alone_grads = [p.grad for p in models[0].parameters() if p.grad is not None]
    assert len(packed) == len(alone_grads) > 10
    for a, b in zip(packed, alone_grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-11 * float(b.abs().max() + 1))


def test_guidance_follows_each_sample_s_own_time() -> None:
    batch, flow = slat_batch((3, 5, 2)), slat_flow().double()
    t_B = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    teacher = Teacher(flow, Guidance(4.0, (0.5, 0.8)))  # both ends belong to it
    found = teacher(batch.x0, t_B, batch.cond, batch.layout)
    plain = flow(batch.x0, t_B, batch.cond, batch.layout)
    empty = flow(batch.x0, t_B, Condition(torch.zeros_like(batch.cond.tokens)), batch.layout)  # type: ignore[arg-type]
    guided = empty + 4.0 * (plain - empty)
    assert torch.allclose(found[:3], plain[:3])
    assert torch.allclose(found[3:], guided[3:])
    assert not torch.allclose(plain[3:], guided[3:])


class Latents(Dataset):
    """Random latents with 1 to 6 voxels."""

    Config = Strict

    def __len__(self) -> int:
        return 30

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        return slat_batch(tuple(1 + i % 6 for i in indices), indices[0], torch.float32)


class NoJvp(StructuredLatentFlow):
    provides = frozenset({"packed"})


def trainer(cls: type[StructuredLatentFlow], said: list[str], **keys: Any) -> Trainer:
    backbone = cls(slat_flow().model)
    config = TrainConfig(**{"steps": 3, "batch_size": 4, "lr": 1e-2, "device": "cpu", **keys})
    objective = MDT(MDTConfig(kind="continuous"))
    return Trainer(objective, Teacher(backbone, Guidance(2.0)), Latents(Strict(), backbone), config, say=said.append)


@pytest.mark.parametrize(("cls", "how"), [(StructuredLatentFlow, "one-pass"), (NoJvp, "finite-difference")])
def test_the_engine_trains_it_and_counts_samples(cls: type[StructuredLatentFlow], how: str) -> None:
    said: list[str] = []
    run = trainer(cls, said)
    before = [p.detach().clone() for p in run.nets.trained["student"].parameters()]
    run.train(lambda row: None, lambda: None)
    assert run.derivatives.tangents.mode == how
    assert how in said[0] or "finite differences" in said[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, run.nets.trained["student"].parameters(), strict=True))
    # A step of 4 samples: the guided teacher looks twice for VM and for VD; the student once for VD's sample, and for
    # each term by one pass that carries the tangent, or by a plain one and two more for the difference.
    counts = run.budget.snapshot()
    assert counts["teacher"]["forward"] == 3 * 4 * 4
    student = counts["student"]
    expected = (3 * 4, 3 * 4 * 2) if how == "one-pass" else (3 * 4 * 7, 0)
    assert (student["forward"], student["tangent"]) == expected


def test_a_layout_keeps_what_it_has_where_it_is() -> None:
    batch = slat_batch()
    assert batch.to(torch.device("cpu")).layout is batch.layout


@pytest.mark.gpu
def test_a_batch_moves_with_its_coordinates_and_trains() -> None:
    batch = slat_batch(dtype=torch.float32).to(torch.device("cuda"))
    assert isinstance(batch.layout, Packed)
    assert batch.layout.coords is not None
    assert {t.device.type for t in (batch.x0, batch.layout.coords, batch.layout.index)} == {"cuda"}
    run = trainer(StructuredLatentFlow, [], device="cuda")
    run.train(lambda row: None, lambda: None)
    assert run.step == 3


def test_what_it_refuses() -> None:
    flow, batch = slat_flow(), slat_batch((2, 1), dtype=torch.float32)
    t_B = torch.ones(2)
    with pytest.raises(FewstepError, match="'trellis-slat' needs a Packed layout with voxel coordinates, got Dense"):
        flow(batch.x0, t_B, batch.cond, Dense(2))
    with pytest.raises(FewstepError, match="got no coords"):
        flow(batch.x0, t_B, batch.cond, Packed.of_lengths([2, 1]))
    with pytest.raises(FewstepError, match="'trellis-slat' needs condition tokens"):
        flow(batch.x0, t_B, Condition(), batch.layout)
    with pytest.raises(FewstepError, match="this network takes one time"):
        flow(batch.x0, t_B, batch.cond, batch.layout, s_B=t_B)


class TestNormalisation:
    def test_both_ways(self) -> None:
        numbers = Normalisation(mean=(1.0, -2.0, 0.5), std=(2.0, 0.5, 4.0))
        z = torch.tensor([[1.0, -2.0, 0.5], [3.0, -1.0, 8.5]])
        assert numbers.apply(z).tolist() == [[0, 0, 0], [1, 2, 2]]
        assert torch.equal(numbers.undo(numbers.apply(z)), z)
        with pytest.raises(FewstepError, match="normalisation: got '3 channels'; accepted: 2"):
            numbers.apply(z[:, :2])

    def test_it_is_read_beside_the_teacher_and_goes_with_the_student(self, tmp_path: Path) -> None:
        save_model(slat_flow().model, tmp_path / "ckpts" / "flow")
        numbers = {"mean": [0.5] * CHANNELS, "std": [2.0] * CHANNELS}
        (tmp_path / "pipeline.json").write_text(json.dumps({"name": "x", "args": {"slat_normalization": numbers}}))
        teacher = StructuredLatentFlow.teacher(SLatConfig(teacher=tmp_path / "ckpts" / "flow", guidance=1.0))
        student = teacher.backbone.student()
        assert isinstance(student, StructuredLatentFlow)
        student.save(tmp_path / "ckpts")
        again = StructuredLatentFlow.load(tmp_path / "ckpts")
        assert again.normalisation == Normalisation(**numbers)  # type: ignore[arg-type]

    def test_what_the_config_says_goes_before(self, tmp_path: Path) -> None:
        save_model(slat_flow().model, tmp_path / "flow")
        (tmp_path / "pipeline.json").write_text("{}")
        config = {"teacher": tmp_path / "flow", "normalisation": {"mean": [1.0], "std": [2.0]}}
        teacher = StructuredLatentFlow.teacher(SLatConfig(**config))
        assert isinstance(teacher.backbone, StructuredLatentFlow)
        assert teacher.backbone.normalisation == Normalisation(mean=(1.0,), std=(2.0,))
        with pytest.raises(FewstepError, match=r"pipeline\.json: no pipeline description"):
            StructuredLatentFlow.teacher(SLatConfig(teacher=tmp_path / "flow"))


def test_a_teacher_on_the_hub_is_fetched_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a folder here; what is asked of it is what is there."""
    save_model(slat_flow().model, tmp_path / "hub" / "ckpts" / "flow")
    numbers = {"mean": [0.0] * CHANNELS, "std": [3.0] * CHANNELS}
    (tmp_path / "hub" / "pipeline.json").write_text(json.dumps({"args": {"slat_normalization": numbers}}))
    asked: list[str] = []

    def fetch(self: source.Repository, file: str) -> Path:
        asked.append(f"{self.name}/{file}")
        return source.Folder(tmp_path / "hub").fetch(file)

    monkeypatch.setattr(source.Repository, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    teacher = StructuredLatentFlow.teacher(SLatConfig(teacher=Path("owner/model/ckpts/flow")))
    assert isinstance(teacher.backbone, StructuredLatentFlow)
    assert teacher.backbone.normalisation == Normalisation(**numbers)  # type: ignore[arg-type]
    assert set(asked) == {
        f"owner/model/{file}" for file in ("pipeline.json", "ckpts/flow.json", "ckpts/flow.safetensors")
    }
    with pytest.raises(FewstepError, match=r"backbone\.teacher: got 'owner/model/ckpts/none'.* looked for owner/model"):
        StructuredLatentFlow.teacher(SLatConfig(teacher=Path("owner/model/ckpts/none")))
