"""TRELLIS.2's flows against a reference written from the facts, one sample at a time in float64, and their files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis.configs import official_config, official_names
from fewstep_trellis2.configs import FOLDER
from fewstep_trellis2.latents import ShapeStage, TextureCondition, TextureStage
from fewstep_trellis2.models import MODELS, SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis2.models.rotary import rotary_tables
from fewstep_trellis2.structure import StructureStage
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError

OFFICIAL = {"share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True, "pe_mode": "rope"}
SIZES = {"model_channels": 24, "cond_channels": 6, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.3334}
STRUCTURE: dict[str, Any] = {"resolution": 3, "in_channels": 2, "out_channels": 2, **SIZES, **OFFICIAL}
SHAPE: dict[str, Any] = {**STRUCTURE, "resolution": 32, "in_channels": 4, "out_channels": 3}
LENGTHS = [5, 1, 9]


def built(cls: type, arguments: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose parameters are all random: none is 0, and gains are near 1."""
    model, draws = cls(**arguments).to(dtype), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draws, dtype=dtype)
        wide = parameter.ndim == 2 and not name.endswith("gamma")
        gain = name.endswith("gamma") or "norm2.weight" in name
        parameter.data = noise / math.sqrt(parameter.shape[1]) if wide else gain + 0.3 * noise
    return model.eval()


def turned(x: Tensor, coords: Tensor, base: float = 1.0, ratio: float = 10000.0) -> Tensor:
    """[N, H, D] as complex numbers times exp(i angle), pair by pair."""
    width = x.shape[-1]
    n, z = width // 6, torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    out = z.clone()
    for pair in range(3 * n):
        axis, i = divmod(pair, n)
        angle = coords[:, axis].double() * base * ratio ** (-i / n)
        out[..., pair] = z[..., pair] * torch.exp(1j * angle)[:, None]
    return torch.view_as_real(out).flatten(-2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("nhd,mhd->hnm", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v).flatten(1)


def reference(model: Any, x: Tensor, coords: Tensor, t: float, cond: Tensor) -> Tensor:
    """The velocity [N, Co] of one sample's tokens [N, C], read from the facts of the published code."""
    p, heads = dict(model.named_parameters()), model.args["num_heads"]

    def linear(name: str, z: Tensor) -> Tensor:
        return F.linear(z, p[f"{name}.weight"], p[f"{name}.bias"])

    def normed(z: Tensor, name: str) -> Tensor:
        if name not in p:
            return z
        return z / z.norm(dim=-1, keepdim=True) * p[name] * math.sqrt(z.shape[-1])

    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=x.dtype) / 128)
    waves = torch.cat([torch.cos(t * frequencies), torch.sin(t * frequencies)])
    emb = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    shared = linear("adaLN_modulation.1", F.silu(emb)) if model.args["share_mod"] else None
    h = linear("input_layer", x)
    for i in range(model.args["num_blocks"]):
        at = f"blocks.{i}"
        own = linear(f"{at}.adaLN_modulation.1", F.silu(emb)) if shared is None else shared + p[f"{at}.modulation"]
        shift, scale, gate, shift2, scale2, gate2 = own.chunk(6)
        z = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k, v = linear(f"{at}.self_attn.to_qkv", z).unflatten(-1, (3, heads, -1)).unbind(1)
        q = turned(normed(q, f"{at}.self_attn.q_rms_norm.gamma"), coords)
        k = turned(normed(k, f"{at}.self_attn.k_rms_norm.gamma"), coords)
        h = h + gate * linear(f"{at}.self_attn.to_out", attended(q, k, v))
        z = F.layer_norm(h, h.shape[-1:], p[f"{at}.norm2.weight"], p[f"{at}.norm2.bias"], eps=1e-6)
        q = normed(linear(f"{at}.cross_attn.to_q", z).unflatten(-1, (heads, -1)), f"{at}.cross_attn.q_rms_norm.gamma")
        k, v = linear(f"{at}.cross_attn.to_kv", cond).unflatten(-1, (2, heads, -1)).unbind(1)
        h = h + linear(f"{at}.cross_attn.to_out", attended(q, normed(k, f"{at}.cross_attn.k_rms_norm.gamma"), v))
        z = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        h = h + gate2 * linear(f"{at}.mlp.mlp.2", F.gelu(linear(f"{at}.mlp.mlp.0", z), approximate="tanh"))
    return linear("out_layer", F.layer_norm(h, h.shape[-1:]))


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def voxels() -> tuple[Tensor, Packed]:
    coords = torch.randint(0, 40, (sum(LENGTHS), 3), generator=torch.Generator().manual_seed(2))
    return coords, Packed.of_lengths(LENGTHS, coords)


@pytest.mark.parametrize("changes", [{}, {"share_mod": False, "qk_rms_norm_cross": False}, {"qk_rms_norm": False}])
def test_structure_flow(changes: dict[str, Any]) -> None:
    model = built(SparseStructureFlowModel, STRUCTURE | changes)
    x, cond, t = randn(2, 2, 3, 3, 3), randn(2, 4, 6, seed=3), torch.tensor([980.0, 31.0]).double()
    coords = torch.cartesian_prod(*[torch.arange(3)] * 3)
    out = model(x, t, cond)
    for i in range(2):
        wanted = reference(model, x[i].flatten(1).T, coords, float(t[i]), cond[i]).T.reshape(2, 3, 3, 3)
        # The angles are float32, as published.
        torch.testing.assert_close(out[i], wanted, rtol=1e-5, atol=1e-5)


def test_shape_flow_is_each_sample_alone_with_its_own_condition() -> None:
    model, (coords, layout) = built(SLatFlowModel, SHAPE), voxels()
    x, t, conds = randn(15, 3), torch.tensor([980.0, 31.0, 500.0]).double(), [randn(n, 6, seed=n) for n in (4, 1, 7)]
    beside = randn(15, 1, seed=4)
    out = model(x, t, conds, layout, concat_cond=beside)
    parts = zip(x.split(LENGTHS), beside.split(LENGTHS), coords.split(LENGTHS), out.split(LENGTHS), strict=True)
    for i, (own, other, where, got) in enumerate(parts):
        wanted = reference(model, torch.cat([own, other], -1), where, float(t[i]), conds[i])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 128])
def test_attention_of_turned_vectors_depends_on_the_distance_alone(width: int, dtype: torch.dtype) -> None:
    q, k = randn(2, 1, 1, width).unbind(0)
    coords = torch.tensor([[7, 0, 90]])

    def product(a: Tensor, b: Tensor) -> Tensor:
        turn = [torch.complex(*(table.double() for table in rotary_tables(one, width))) for one in (a, b)]
        left, right = (torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) for z in (q, k))
        return ((left * turn[0]) * (right * turn[1]).conj()).real.sum()

    assert torch.allclose(product(coords, coords + 3), product(coords - 5, coords - 2), atol=1e-4)
    assert not torch.allclose(product(coords, coords + 3), product(coords, coords + 4), atol=1e-2)
    cos, _ = rotary_tables(coords, width)
    assert int((cos != 1).sum()) == 2 * (width // 6)  # y is 0; the pairs of no axis are not turned


def test_forward_mode_is_the_derivative() -> None:
    model, (_, layout) = built(SLatFlowModel, SHAPE | {"in_channels": 3}), voxels()
    x, cond, t = randn(15, 3), randn(3, 4, 6, seed=3), torch.tensor([900.0, 31.0, 500.0]).double()
    x_dot, t_dot, h = randn(15, 3, seed=5), randn(3, seed=6), 1e-5

    def f(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = model(x, t, cond, layout)
        return out

    _, tangent = torch.func.jvp(f, (x, t), (x_dot, t_dot))
    difference = (f(x + h * x_dot, t + h * t_dot) - f(x - h * x_dot, t - h * t_dot)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-7)


def test_rope_freq_counts_in_the_sparse_flow_alone() -> None:
    other = {"rope_freq": [2.0, 100.0]}
    x, t, cond = randn(1, 2, 3, 3, 3), torch.tensor([500.0]).double(), randn(1, 4, 6, seed=3)
    plain, changed = (built(SparseStructureFlowModel, STRUCTURE | more) for more in ({}, other))
    assert torch.equal(plain(x, t, cond), changed(x, t, cond))
    (_, layout), x = voxels(), randn(15, 4)
    t, cond = t.expand(3), cond.expand(3, -1, -1)
    plain, changed = (built(SLatFlowModel, SHAPE | more) for more in ({}, other))
    assert not torch.allclose(plain(x, t, cond, layout), changed(x, t, cond, layout))


PARAMETERS = {"ss": 1292179976, "slat_flow_img2shape": 1292253728, "slat_flow_imgshape2tex": 1292302880}


@pytest.mark.parametrize("name", official_names(FOLDER))
def test_official_configurations(name: str) -> None:
    cls, args = official_config(name, FOLDER)
    if "flow" not in name:
        pytest.skip("a decoder")
    model = build_model(cls, args, "meta", MODELS)
    wanted = next(count for stem, count in PARAMETERS.items() if name.startswith(stem))
    assert sum(p.numel() for p in model.parameters()) == wanted
    half = {key for key, p in model.named_parameters() if p.dtype == torch.bfloat16}
    inner = {k for k, p in model.named_parameters() if k.startswith("blocks.") and k.split(".")[2] != "norm2"}
    assert half == {k for k in inner if not k.endswith(("gamma", "modulation"))}
    assert next(key for key in model.state_dict() if key.startswith("blocks.0.")) == "blocks.0.modulation"
    assert tuple(model.state_dict()["blocks.29.mlp.mlp.0.weight"].shape) == (8192, 1536)


def test_files_with_and_without_rope_phases(tmp_path: Path) -> None:
    model = built(SparseStructureFlowModel, STRUCTURE, dtype=torch.float32)
    path = save_model(model, tmp_path / "flow")
    tensors = load_file(path)
    assert "rope_phases" not in tensors
    save_file({"rope_phases": torch.zeros(27, 6, dtype=torch.complex64), **tensors}, path)
    found = load_model(path, models=MODELS)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.modulation"), "1 missing: blocks.1.modulation"),
        (lambda t: t.update(stray=torch.ones(1)), "1 unknown: stray"),
        (lambda t: t.update({"out_layer.bias": torch.ones(9)}), r"out_layer.bias \[9\] instead of \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    path = save_model(built(SparseStructureFlowModel, STRUCTURE, dtype=torch.float32), tmp_path / "flow")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(FewstepError, match=message):
        load_model(path, models=MODELS)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="patch_size"):
        build_model("SLatFlowModel", SHAPE | {"patch_size": 2}, "meta", MODELS)
    with pytest.raises(FewstepError, match=r"unknown dtype 'bf16'.*bfloat16"):
        build_model("SLatFlowModel", SHAPE | {"dtype": "bf16"}, "meta", MODELS)
    with pytest.raises(FewstepError, match="holds a SLatFlowModel"):
        StructureStage.load_file(save_model(SLatFlowModel(**SHAPE), tmp_path / "model"))


def test_a_student_is_a_file_of_the_official_class(tmp_path: Path) -> None:
    args = STRUCTURE | {"dtype": "bfloat16"}
    teacher = StructureStage(built(SparseStructureFlowModel, args, dtype=torch.float32))
    teacher.model.convert_torso(torch.bfloat16)
    student = teacher.student().float()  # as the engine trains it
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    student.save(tmp_path, half=True)
    config = json.loads((tmp_path / "model.json").read_text())
    assert config["name"] == "SparseStructureFlowModel"
    assert config["args"]["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    again, x, cond = StructureStage.load(tmp_path), randn(1, 2, 3, 3, 3).float(), randn(1, 4, 6).float()
    assert {k: v.dtype for k, v in again.model.named_parameters()} == {
        k: v.dtype for k, v in build_model("SparseStructureFlowModel", args, "meta", MODELS).named_parameters()
    }
    out = [net(x, torch.ones(1), Condition(cond), Dense(1)) for net in (teacher, again)]
    torch.testing.assert_close(*out, rtol=0.05, atol=0.05)


def test_elastic_names_are_kept(tmp_path: Path) -> None:
    model = build_model("ElasticSLatFlowModel", SHAPE, models=MODELS)
    stage = ShapeStage.load_file(save_model(model, tmp_path / "model"))
    stage.save(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["name"] == "ElasticSLatFlowModel"


def texture(rows: Tensor, layout: Packed) -> TextureCondition:
    return TextureCondition.of(Condition(randn(3, 4, 6, seed=3)), rows, layout)


def test_shape_latents_go_with_their_samples() -> None:
    (_, layout), rows = voxels(), randn(15, 1, seed=7)
    cond = texture(rows, layout)
    assert torch.equal(cond.rows(layout), rows)
    chosen, fewer = layout.select(rows, torch.tensor([2, 0]))
    assert torch.equal(cond.select(torch.tensor([2, 0])).rows(fewer), chosen)
    for other in (cond.negative(), cond.dropped(torch.tensor([True, False, True]))):
        assert isinstance(other, TextureCondition)
        assert torch.equal(other.rows(layout), rows)


def test_texture_stage_puts_them_beside_the_noise() -> None:
    model, (_, layout), rows = built(SLatFlowModel, SHAPE), voxels(), randn(15, 1, seed=7)
    stage, x, t_B = TextureStage(model), randn(15, 3), torch.tensor([1.0, 0.3, 0.6]).double()
    cond = texture(rows, layout)
    wanted = model(x, 1000 * t_B, cond.tokens, layout, concat_cond=rows)
    assert torch.equal(stage(x, t_B, cond, layout), wanted)
    with pytest.raises(FewstepError, match="shape latents in a TextureCondition"):
        stage(x, t_B, Condition(cond.tokens), layout)
