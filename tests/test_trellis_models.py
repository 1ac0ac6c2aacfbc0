"""The TRELLIS structure models: official state dicts, precision, derivatives, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.configs import official_config, official_names
from fewstep_trellis.models import MODELS, SparseStructureDecoder, SparseStructureEncoder, SparseStructureFlowModel
from fewstep_trellis.models.convolutions import Conv3d, pixel_shuffle_3d
from fewstep_trellis.models.embeddings import grid_coords, position_embedding
from fewstep_trellis.models.patches import patchify, unpatchify
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.errors import FewstepError

CONFIGS = sorted((Path(__file__).parent / "golden" / "data" / "statedict").glob("ss_*.json"))
ARGS: dict[str, Any] = {
    "resolution": 4,
    "in_channels": 3,
    "model_channels": 24,
    "cond_channels": 10,
    "out_channels": 3,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 2,
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}


def awake(model: nn.Module) -> nn.Module:
    """Random weights everywhere: fresh models predict zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def flow_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=dtype)
    return x, torch.tensor([250.0, 800.0], dtype=dtype), torch.randn(2, 5, 10, generator=generator, dtype=dtype)


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_state_dict_is_the_official_one(path: Path) -> None:
    record = json.loads(path.read_text())
    with torch.device("meta"):
        name, args = official_config(path.stem)
        model = MODELS[name](**args)
    parameters = {key for key, _ in model.named_parameters()}
    ours = [
        [key, list(v.shape), str(v.dtype).removeprefix("torch."), "param" if key in parameters else "buffer"]
        for key, v in model.state_dict().items()
    ]
    assert ours == record["tensors"]


def test_all_six_official_configurations_are_here() -> None:
    assert len(CONFIGS) == 6
    assert len(official_names()) == 14
    with pytest.raises(FewstepError, match=r"did you mean 'ss_flow_img_dit_L_16l8_fp16'"):
        official_config("ss_flow_img_dit_L_16l8_fp32")


@pytest.mark.parametrize(
    "change", [{}, {"patch_size": 1}, {"share_mod": True}, {"qk_rms_norm": False, "qk_rms_norm_cross": False}]
)
def test_jvp_against_differences(change: dict[str, Any]) -> None:
    model = awake(SparseStructureFlowModel(**ARGS | change)).double()
    x, t, cond = flow_inputs(torch.float64)
    dx, dt, h = torch.randn_like(x), torch.tensor([1.0, -2.0], dtype=x.dtype), 2e-6
    value, tangent = torch.func.jvp(lambda x, t: model(x, t, cond), (x, t), (dx, dt))
    expected = (model(x + h * dx, t + h * dt, cond) - model(x - h * dx, t - h * dt, cond)) / (2 * h)
    assert value.dtype == torch.float64
    assert torch.equal(value, model(x, t, cond)) or torch.allclose(value, model(x, t, cond), atol=1e-12)
    assert (tangent - expected).abs().max() < 1e-7 * expected.abs().max()


def test_gradients_reach_the_weights_through_jvp() -> None:
    model = awake(SparseStructureFlowModel(**ARGS))
    x, t, cond = flow_inputs()
    value, tangent = torch.func.jvp(lambda x: model(x, t, cond), (x,), (torch.ones_like(x),))
    (value + tangent).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_float64_model_does_not_compute_time_in_float32() -> None:
    model = awake(SparseStructureFlowModel(**ARGS)).double()
    x, t, cond = flow_inputs(torch.float64)
    assert not torch.equal(model(x, t, cond), model(x, t + 1e-7, cond))


def test_a_fresh_model_predicts_zero() -> None:
    x, t, cond = flow_inputs()
    assert not SparseStructureFlowModel(**ARGS)(x, t, cond).any()
    fresh = SparseStructureFlowModel(**ARGS | {"share_mod": True})
    assert fresh.adaLN_modulation is not None
    assert not any(p.any() for p in fresh.adaLN_modulation.parameters())
    assert 0.015 < fresh.t_embedder.mlp[0].weight.std() < 0.025


def test_half_torso_and_back() -> None:
    model = awake(SparseStructureFlowModel(**ARGS))
    assert isinstance(model, SparseStructureFlowModel)
    x, t, cond = flow_inputs()
    expected = model(x, t, cond)
    model.convert_to_fp16()
    assert model.blocks[0].mlp.mlp[0].weight.dtype == torch.float16
    half = model(x, t, cond)
    assert half.dtype == torch.float32
    assert 0 < (half - expected).abs().max() < 5e-3 * expected.abs().max()
    model.convert_to_fp32()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert (model(x, t, cond) - expected).abs().max() < 5e-3 * expected.abs().max()


def test_checkpointing_changes_nothing_and_steps_aside_for_jvp() -> None:
    plain, saving = (awake(SparseStructureFlowModel(**ARGS | {"use_checkpoint": b})) for b in (False, True))
    x, t, cond = flow_inputs()
    for model in (plain, saving):
        model(x, t, cond).square().sum().backward()
    pairs = zip(plain.parameters(), saving.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
    tangents = [torch.func.jvp(lambda x, m=m: m(x, t, cond), (x,), (x,))[1] for m in (plain, saving)]
    assert torch.equal(*tangents)


class Attends(TorchDispatchMode):
    """Counts forward passes of torch's fused attention on a CPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "passes"), [("none", 1), ("selective", 1), ("blocks", 2)])
def test_recomputed_blocks_attend_again_unless_selective(recompute: str, passes: int) -> None:
    flow = StructureFlow(awake(SparseStructureFlowModel(**ARGS)))
    flow.recompute = recompute
    student = flow.student()
    x, t, cond = flow_inputs()
    with Attends() as attends:
        student.model(x, t, cond).square().sum().backward()
    assert attends.count == passes * 2 * len(student.model.blocks)  # self and cross attention
    flow.model(x, t, cond).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(flow.parameters(), student.parameters(), strict=True))


def test_patches_and_shuffle_order() -> None:
    x = torch.arange(2 * 3 * 4**3).reshape(2, 3, 4, 4, 4)
    tokens = patchify(x, 2)
    assert torch.equal(unpatchify(tokens, 2, 2), x)
    # Token 1 is the next patch along the last axis; within a token the channel is slowest.
    assert torch.equal(tokens[0, 1].reshape(3, 2, 2, 2), x[0, :, :2, :2, 2:])
    shuffled = pixel_shuffle_3d(torch.arange(16.0).reshape(1, 16, 1, 1, 1), 2)
    assert torch.equal(shuffled[0, 1].flatten(), torch.arange(8.0, 16.0))


def test_position_embedding_layout() -> None:
    coords = grid_coords(3)
    assert coords[1].tolist() == [0, 0, 1]
    found = position_embedding(coords, 16, torch.float64)
    first, second = coords[:, 0].double(), coords[:, 0] * 10000**-0.5
    expected = torch.stack([first.sin(), second.sin(), first.cos(), second.cos()], 1)
    assert torch.allclose(found[:, :4], expected)
    assert not found[:, 12:].any()


def test_vae_round_trip_shapes_and_posterior() -> None:
    encoder = awake(SparseStructureEncoder(1, 2, 1, [4, 8], 1))
    decoder = awake(SparseStructureDecoder(1, 2, 1, [8, 4], 1))
    x, noise = torch.randint(0, 2, (2, 1, 8, 8, 8)).float(), torch.randn(2, 2, 4, 4, 4)
    z, mean, logvar = encoder(x, return_raw=True)
    assert torch.equal(z, mean)
    assert torch.allclose(encoder(x, sample_posterior=True, noise=noise), mean + (logvar / 2).exp() * noise)
    assert not torch.equal(encoder(x, sample_posterior=True), mean)
    assert decoder(z).shape == x.shape


def test_norm_type_reaches_the_output_layer_only() -> None:
    model = awake(SparseStructureDecoder(1, 2, 1, [32], 1, norm_type="group"))
    assert type(model.out_layer[0]).__name__ == "WideGroupNorm"
    assert type(model.blocks[0].norm1).__name__ == "ChannelLayerNorm"
    z = torch.randn(1, 2, 4, 4, 4)
    full = model(z)
    model.convert_to_fp16()
    assert (model(z) - full).abs().max() < 5e-3 * full.abs().max()
    model.convert_to_fp32()
    assert model.blocks[0].conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pe_mode": "rope"}, "pe_mode: got 'rope'; accepted: 'ape'"),
        ({"pe_mode": "apee"}, "unknown pe_mode 'apee'.*did you mean 'ape'"),
        ({"patch_size": 3}, "resolution: got 4; accepted: a multiple of patch_size"),
        ({"num_heads": 5}, "model_channels: got 24; accepted: a multiple of num_heads"),
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_blocks": 0}, "num_blocks: got 0"),
    ],
)
def test_flow_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        SparseStructureFlowModel(**ARGS | change)


def test_number_of_heads_from_their_width() -> None:
    model = SparseStructureFlowModel(**ARGS | {"num_heads": None, "num_head_channels": 8})
    assert model.blocks[0].self_attn.heads == 3


def test_shape_refusals() -> None:
    model = SparseStructureFlowModel(**ARGS)
    x, t, cond = flow_inputs()
    with pytest.raises(FewstepError, match=r"shape of x: got \(2, 3, 4, 4, 2\); accepted: .*any, 3, 4, 4, 4"):
        model(x[..., :2], t, cond)
    with pytest.raises(FewstepError, match="shape of t"):
        model(x, t[:1], cond)
    with pytest.raises(FewstepError, match="shape of cond"):
        model(x, t, cond[:, :, :4])
    with pytest.raises(FewstepError, match="shape of z"):
        SparseStructureDecoder(1, 2, 1, [8, 4], 1)(torch.zeros(1, 3, 4, 4, 4))


def test_vae_refusals() -> None:
    with pytest.raises(FewstepError, match=r"unknown norm_type 'gruop'.*did you mean 'group'"):
        SparseStructureEncoder(1, 2, 1, [4], norm_type="gruop")
    with pytest.raises(FewstepError, match="channels: got"):
        SparseStructureDecoder(1, 2, 1, [])


def test_one_sample_takes_no_slow_convolution() -> None:
    """On a CPU torch computes small single samples five times slower than batches, unless oneDNN is asked for."""
    torch.manual_seed(0)
    ours = Conv3d(8, 6, 3, padding=1)
    plain = torch.nn.Conv3d(8, 6, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 8, 12, 12, 12)
    with torch.no_grad(), torch.profiler.profile() as seen:
        found = ours(x)
    assert not [event.name for event in seen.events() if "slow_conv3d" in event.name]
    assert torch.allclose(found, plain(x), atol=1e-5)
    assert found.is_contiguous()
    for other in (x.double(), x.expand(2, -1, -1, -1, -1), x.requires_grad_()):
        layer = plain.to(other.dtype)
        assert torch.equal(ours.to(other.dtype)(other), layer(other))
        ours.float(), plain.float()
