"""The runner of golden objectives on packed latents: a record made by explicit formulas, one sample at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.slat import StructuredLatentFlow
from golden.run import main
from safetensors.torch import load_file, save_file
from slat_helpers import TOKENS, WIDTH, slat_batch, slat_flow
from torch import Tensor

from fewstep.core.layout import Packed

SIGMA, INTERVAL, W, LAMBDA = 1e-5, 0.02, {"vm": 3.0, "vd": 5.0}, {"vm": 0.7, "vd": 0.3}
LENGTHS = (7, 0, 19, 2)
Tensors = dict[str, Tensor]


def velocity(flow: StructuredLatentFlow, x: Tensor, t: float, cond: Tensor, coords: Tensor) -> Tensor:
    """Of one sample [T, C]."""
    return flow.model(x, torch.tensor([1000 * t]).to(x), cond[None], Packed.of_lengths([len(x)], coords))


def term(nets: list[StructuredLatentFlow], one: Tensors, x0: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """Prediction and target of one sample on clean ``x0``: the discrete formula with its normalised difference."""
    (student, teacher), t = nets, float(one["t"])
    x_t = (1 - t) * x0 + (SIGMA + (1 - SIGMA) * t) * one["noise"]
    with torch.no_grad():
        given, empty = (velocity(teacher, x_t, t, one[name], one["coords"]) for name in ("cond", "neg_cond"))
        guided = (1 + w) * given - w * empty
        earlier = velocity(student, x_t - INTERVAL * guided, t - INTERVAL, one["cond"], one["coords"])
    predicted = velocity(student, x_t, t, one["cond"], one["coords"])
    slope = (predicted.detach() - earlier) / INTERVAL
    return predicted, guided - t * slope / (slope.norm() + 0.1)


def loss_of(nets: list[StructuredLatentFlow], samples: list[Tensors], found: Tensors) -> Tensor:
    """Both terms over the whole batch, means over all elements; every tensor that a record has goes into ``found``."""
    total, count = torch.zeros(()).double(), sum(one["x_0"].numel() for one in samples)
    parts: dict[str, list[Tensor]] = {}
    for one in samples:
        fake = velocity(nets[0], one["noise_fake"], 1.0, one["cond"], one["coords"])
        x_fake = one["noise_fake"] - fake
        v_pred, v_tgt = term(nets, one, one["x_0"], W["vm"])
        total = total + LAMBDA["vm"] * (v_pred - v_tgt).square().sum() / count
        with torch.no_grad():
            f_pred, f_tgt = term(nets, one, x_fake, W["vd"])
        total = total + LAMBDA["vd"] * (f_pred + fake - fake.detach() - f_tgt).square().sum() / count
        for key, value in {"vm.v_pred": v_pred, "vm.v_tgt": v_tgt, "vd.v_pred": f_pred, "vd.v_tgt": f_tgt}.items():
            parts.setdefault(key, []).append(value.detach())
        parts.setdefault("vd.x_fake", []).append(x_fake.detach())
    found.update({f"case.{key}": torch.cat(values) for key, values in parts.items()})
    return total


def terms_of(found: Tensors, t: Tensor) -> dict[str, Any]:
    """What the log of a step would say."""
    error = {key: (found[f"case.{key}.v_pred"] - found[f"case.{key}.v_tgt"]).square() for key in ("vm", "vd")}
    losses = {f"loss_{key}": LAMBDA[key] * float(value.mean()) for key, value in error.items()}
    both = sum(LAMBDA[key] * value for key, value in error.items()).split(LENGTHS)  # type: ignore[union-attr]
    bins = {
        f"bin_{int(10 * time)}": {"loss": float(rows.mean()) if len(rows) else 0.0}
        for time, rows in zip(t.tolist(), both, strict=True)
    }
    return {**losses, "loss": sum(losses.values()), **bins}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden folder with one scenario of a batch that has a sample without voxels."""
    root = tmp_path_factory.mktemp("golden")
    nets, batch = [slat_flow(3).double(), slat_flow(4).double()], slat_batch(LENGTHS, 5)
    assert isinstance(batch.layout, Packed)
    assert batch.layout.coords is not None
    draws = torch.Generator().manual_seed(6)
    noise, noise_fake = (torch.randn(batch.x0.shape, generator=draws, dtype=torch.float64) for _ in range(2))
    neg_cond = torch.randn(len(LENGTHS), TOKENS, WIDTH, generator=draws, dtype=torch.float64)
    t = torch.tensor([0.93, 0.71, 0.55, 0.17], dtype=torch.float64)
    inputs = {"x_0": batch.x0, "noise": noise, "noise_fake": noise_fake}
    coords = batch.layout.coords
    samples = [
        {key: value.split(LENGTHS)[i] for key, value in {**inputs, "coords": coords}.items()}
        | {"t": t[i], "cond": batch.cond.tokens[i], "neg_cond": neg_cond[i]}  # type: ignore[index]
        for i, length in enumerate(LENGTHS)
        if length
    ]
    found: Tensors = {}
    loss_of(nets, samples, found).backward()
    grads = {name: p.grad for name, p in nets[0].model.named_parameters() if p.grad is not None}
    norms = {name: float(grad.norm()) for name, grad in grads.items()}
    settings = {"distill_type": "discrete", "d_norm": True, "sigma_min": SIGMA, "interval": INTERVAL}
    settings |= {f"lambda_{key}": value for key, value in LAMBDA.items()}
    settings |= {f"cfg_teacher_{key}": value for key, value in W.items()}
    one = {"settings": {}, "terms": terms_of(found, t), "grad_norm": norms}
    one["total_grad_norm"] = sum(value**2 for value in norms.values()) ** 0.5
    record = {"model": "ElasticSLatFlowModel", "args": nets[0].model.args, "defaults": settings}
    (root / "mdt").mkdir()
    (root / "mdt" / "packed.json").write_text(json.dumps({**record, "scenarios": {"case": one}}))
    tensors = {f"input.{key}": value for key, value in {**inputs, "t": t, "neg_cond": neg_cond}.items()}
    tensors |= {"input.cond": batch.cond.tokens} | found  # type: ignore[dict-item]
    tensors |= {f"case.grad.{name}": grad for name, grad in grads.items()}
    for role, net in zip(("student", "teacher"), nets, strict=True):
        tensors |= {f"{role}.{name}": value for name, value in net.model.state_dict().items()}
    tensors = {name: value.float().contiguous() for name, value in tensors.items()}
    tensors["input.coords"] = torch.cat([batch.layout.index[:, None], coords], 1).int()
    save_file(tensors, root / "mdt" / "packed.safetensors")
    return root


def test_the_packed_objective_is_the_formula(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0, capsys.readouterr().out
    assert "not supported" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "key", ["case.vm.v_tgt", "case.vd.v_pred", "case.grad.input_blocks.0.conv2.conv.bias", "input.noise_fake"]
)
def test_a_wrong_number_is_seen(folder: Path, key: str, tmp_path: Path) -> None:
    """Deliberate failure: one number of the record moved."""
    tensors = load_file(folder / "mdt" / "packed.safetensors")
    tensors[key].view(-1)[0] += 0.01 * tensors[key].abs().max()
    save_file(tensors, tmp_path / "packed.safetensors")
    (tmp_path / "packed.json").write_text((folder / "mdt" / "packed.json").read_text())
    assert main([str(tmp_path)]) == 1


def test_samples_that_change_places_are_seen(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "mdt" / "packed.safetensors")
    tensors["input.t"] = tensors["input.t"].flip(0)
    save_file(tensors, tmp_path / "packed.safetensors")
    (tmp_path / "packed.json").write_text((folder / "mdt" / "packed.json").read_text())
    assert main([str(tmp_path)]) == 1
