"""Students by low-rank adapters: what is shared, what stays as it was, what is trained, merged and exported."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import install
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from torch import Tensor

import fewstep
from fewstep.api.loading import load
from fewstep.cli import main
from fewstep.config.train import LoRAConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.objective import NetSpec
from fewstep.engine.adapters import adapters_in, merged
from fewstep.engine.export import load_student
from fewstep.engine.networks import Networks
from fewstep.errors import FewstepError
from fewstep.files import sha256
from fewstep.testing import TinyBackbone, tiny_batch

SPECS = {"student": NetSpec(ema=(0.5,)), "critic": NetSpec(), "other": NetSpec(init="student")}
TOY = ("train.steps=6", "train.batch_size=8", "train.checkpoint_every=3", "lora.rank=2", "train.lr=0.01")


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    install()


def networks(needs: frozenset[str] = frozenset(), **keys: Any) -> Networks:
    lora = LoRAConfig(**{"rank": 2, **keys})
    return Networks(SPECS, Teacher(TinyBackbone(), Guidance(2.0)), torch.device("cpu"), needs=needs, lora=lora)


def train(nets: Networks, name: str = "student", steps: int = 3) -> None:
    """Some updates of the trained parameters, towards zero velocity."""
    adam = torch.optim.AdamW(nets.parameters[name].values(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        answer(nets.trained[name]).square().mean().backward()
        adam.step()
        adam.zero_grad()
        nets.averages.update((name,))


def answer(network: Any, cond: Condition | None = None) -> Tensor:
    batch = tiny_batch(dtype=torch.float32)
    out: Tensor = network(batch.x0, torch.tensor([0.2, 0.5, 0.9]), cond or batch.cond, batch.layout)
    return out


def test_all_networks_share_the_teachers_weights() -> None:
    nets = networks()
    base = dict(nets.teacher.backbone.named_parameters())
    for module in (*nets.trained.values(), *nets.emas.values()):
        found = dict(module.named_parameters())
        assert all(found[key] is parameter for key, parameter in base.items())
    assert nets.parameters["student"].keys() == {f"{name}.lora.{key}" for name in ("inner", "outer") for key in "AB"}
    assert len(nets.state()) == 4 * (len(nets.trained) + len(nets.emas))
    assert torch.equal(answer(nets.trained["student"]), answer(nets.teacher.backbone))


def test_the_base_stays_as_it_was_and_the_student_moves() -> None:
    nets = networks()
    before, said = copy.deepcopy(nets.teacher.backbone.state_dict()), answer(nets.teacher.backbone)
    for name in nets.trained:
        train(nets, name)
    assert all(torch.equal(before[key], value) for key, value in nets.teacher.backbone.state_dict().items())
    assert torch.equal(answer(nets.teacher.backbone), said)
    assert not torch.allclose(answer(nets.trained["student"]), said, atol=1e-2)


def test_networks_of_a_closed_form_share_what_was_fitted_to_it() -> None:
    teacher = ToyFlow.teacher(ToyConfig(pretrain=0, width=8))
    nets = Networks(SPECS, teacher, torch.device("cpu"), lora=LoRAConfig(rank=2))
    student, critic = nets.trained["student"], nets.trained["critic"]
    assert all(key.endswith((".lora.A", ".lora.B")) for key in nets.parameters["student"])
    for key, parameter in student.named_parameters():
        assert (critic.get_parameter(key) is parameter) == (".lora." not in key)


def test_another_students_weights_leave_the_teachers_as_they_are() -> None:
    nets, other = networks(), TinyBackbone(seed=5)
    before = copy.deepcopy(nets.teacher.backbone.state_dict())
    nets.start_from(other)
    assert all(torch.equal(before[key], value) for key, value in nets.teacher.backbone.state_dict().items())
    assert torch.equal(answer(nets.trained["critic"]), answer(nets.teacher.backbone))  # it starts from the teacher
    for module in (nets.trained["student"], nets.trained["other"], nets.emas["student", 0.5]):
        assert torch.equal(answer(module), answer(other))
        assert module.get_parameter("inner.weight") is nets.trained["student"].get_parameter("inner.weight")
    assert len(nets.state()) == 4 * (len(nets.trained) + len(nets.emas))


def test_the_merged_weights_are_base_and_adapter() -> None:
    nets = networks(alpha=6.0)
    train(nets)
    student = nets.trained["student"]
    plain = merged(student)
    for name in ("inner", "outer"):
        layer = student.get_submodule(name)
        expected = layer.weight.double() + 6.0 / 2 * (layer.lora.B.double() @ layer.lora.A.double())
        torch.testing.assert_close(plain.get_parameter(f"{name}.weight").double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(answer(plain), answer(student), rtol=0, atol=1e-6)
    assert not adapters_in(plain)
    assert len(adapters_in(student)) == 2  # the student goes on as before
    assert plain.state_dict().keys() == nets.teacher.backbone.state_dict().keys()


def test_the_average_is_of_the_adapters() -> None:
    nets = networks()
    train(nets, steps=1)
    ema, student = nets.emas["student", 0.5], nets.trained["student"]
    for key, parameter in nets.parameters["student"].items():
        start = torch.zeros_like(parameter) if key.endswith("B") else networks().parameters["student"][key]
        torch.testing.assert_close(ema.get_parameter(key), 0.5 * start + 0.5 * parameter)
    assert student.outer.lora.B.any()


def test_an_added_input_is_trained_in_full() -> None:
    nets = networks(frozenset({"guidance_input"}))
    grown = {key for key in nets.parameters["student"] if ".lora." not in key}
    assert grown
    assert all(key.startswith("strength_embedder") for key in grown)


def test_a_jvp_is_the_merged_networks() -> None:
    nets = networks()
    train(nets)
    batch, t_B = tiny_batch(dtype=torch.float32, packed=True), torch.tensor([0.2, 0.5, 0.9])
    primals, tangents = (batch.x0, t_B), (torch.ones_like(batch.x0), torch.ones_like(t_B))

    def of(network: Any) -> Any:
        return torch.func.jvp(lambda x, t: network(x, t, batch.cond, batch.layout), primals, tangents)

    torch.testing.assert_close(of(nets.trained["student"]), of(merged(nets.trained["student"])), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "found"), [(("outer",), ["outer"]), (("in.*",), ["inner"]), (("outer", "inner"), ["inner", "outer"])]
)
def test_targets(targets: tuple[str, ...], found: list[str]) -> None:
    assert sorted(adapters_in(networks(targets=targets).trained["student"])) == found


def test_targets_that_fit_nothing_are_refused() -> None:
    with pytest.raises(FewstepError, match=r"lora.targets: 'outter' fits no.*inner, outer.*did you mean 'outer'"):
        networks(targets=("outter",))
    with pytest.raises(FewstepError, match=r"lora.targets: got '\(', which is not a regular expression"):
        networks(targets=("(",))


def test_half_precision_weights_are_shared_as_they_are() -> None:
    from fewstep_trellis.backbone import StructureFlow, TrellisConfig

    flow = StructureFlow.initial(TrellisConfig())
    flow.model.convert_to_fp16()
    nets = Networks({"student": NetSpec()}, Teacher(flow), torch.device("cpu"), lora=LoRAConfig(rank=2))
    student: Any = nets.trained["student"]
    layer = student.model.blocks[0].self_attn.to_qkv
    assert layer.weight is flow.model.blocks[0].self_attn.to_qkv.weight
    assert layer.weight.dtype is torch.float16
    assert layer.lora.A.dtype is torch.float32
    assert merged(student).model.half_torso is None
    assert all(re_fits(name) for name in adapters_in(student))
    assert {p.dtype for p in merged(student).parameters()} == {torch.float32}


def re_fits(name: str) -> bool:
    return any(part in name for part in ("self_attn.to_", "cross_attn.to_", "mlp.mlp."))


def toy(out: Path, *more: str, backbone: str = "toy") -> int:
    return main(["distill", "-m", "mdt-vd", "-b", backbone, "-o", str(out), *TOY, *more])


def interrupted(run: Path, out: Path) -> Path:
    """A copy of a run as it was when it had written the checkpoint of step 3."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "student")
    shutil.rmtree(out / "checkpoints/step-00000006")
    return out


@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_a_run_its_student_and_its_resumption(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("backbone.teacher=learned", "backbone.pretrain=20", f"data.layout={layout}", "train.ema=[0.9]")
    assert toy(tmp_path / "a", *keys) == 0
    assert re.search(r"trained weights: student [\d,]+ of [\d,]+\n", capsys.readouterr().out)
    assert main(["distill", "--resume", "-o", str(interrupted(tmp_path / "a", tmp_path / "b"))]) == 0
    weights = "student/model.safetensors"
    assert sha256(tmp_path / "a" / weights) == sha256(tmp_path / "b" / weights)
    assert main(["sample", str(tmp_path / "a"), "-o", str(tmp_path / "a.png")]) == 0
    capsys.readouterr()


def test_going_on_from_a_student_keeps_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("backbone.teacher=learned", "backbone.pretrain=20")
    assert toy(tmp_path / "a", *keys) == 0
    again = (*keys, f"train.start={tmp_path / 'a'}", "train.lr=1e-9")
    assert toy(tmp_path / "b", *again) == 0
    assert main(["distill", "--resume", "-o", str(interrupted(tmp_path / "b", tmp_path / "c"))]) == 0
    first, second, third = (load_student(tmp_path / name)[0].state_dict() for name in "abc")
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-6)
        assert torch.equal(third[key], second[key])
    capsys.readouterr()


def test_peft_reads_the_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    run = fewstep.distill(
        "mdt-vd",
        "trellis",
        config={"backbone": {}},
        out=tmp_path / "run",
        lora={"rank": 3, "alpha": 5.0},
        train={"steps": 2, "batch_size": 2, "lr": 0.01},
    )
    student = load(run.folder)
    facts = json.loads((run.folder / "student/adapter_config.json").read_text())
    assert (facts["peft_type"], facts["r"], facts["lora_alpha"]) == ("LORA", 3, 5.0)
    base = type(student.network).teacher(type(student.network).Config()).backbone
    batch = student.prompts(2)
    x, t_B = batch.x0, torch.tensor([0.3, 0.8])
    with torch.no_grad():
        plain = base(x, t_B, batch.cond, batch.layout)
        theirs = peft.PeftModel.from_pretrained(base, run.folder / "student")(x, t_B, batch.cond, batch.layout)
        ours = student.network(x, t_B, batch.cond, batch.layout)
    assert (ours - plain).norm() > 1e-3 * plain.norm()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    capsys.readouterr()
