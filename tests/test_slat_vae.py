"""The structured latents' autoencoder: its torso against loops over windows, and what its decoders make of a row."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fewstep_shapes3d.sparse.geometry import coords_of
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.models import SLatGaussianDecoder, SLatMeshDecoder, SLatRadianceFieldDecoder
from fewstep_trellis.models.slat_gaussians import hammersley
from fewstep_trellis.models.sparse_blocks import SparseSubdivideBlock
from slat_cases import CASES, SPLATS, VAE, awake, inputs, ragged, run
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError


def plain_embedding(place: list[int], channels: int) -> Tensor:
    """Position embedding of one voxel, number by number."""
    count, values = channels // 3 // 2, []
    for p in place:
        angles = [p / 10000 ** (i / count) for i in range(count)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values + [0.0] * (channels - len(values)), dtype=torch.float64)


def plain_groups(coords: Tensor, sample: Tensor, window: int | None, shift: int) -> list[list[int]]:
    """Rows that attend to each other."""
    found = defaultdict(list)
    for row, (place, owner) in enumerate(zip(coords.tolist(), sample.tolist(), strict=True)):
        cell = () if window is None else tuple((p + shift) // window for p in place)
        found[(owner, *cell)].append(row)
    return list(found.values())


def plain_block(block: Any, h: Tensor, groups: list[list[int]], heads: int) -> Tensor:
    """Pre-norm attention within groups, head by head, then the network."""
    width = h.shape[1]
    qkv = block.attn.to_qkv(F.layer_norm(h, (width,), eps=1e-6)).reshape(len(h), 3, heads, width // heads)
    mixed = torch.zeros_like(h).reshape(len(h), heads, -1)
    for rows in groups:
        for head in range(heads):
            q, k, v = qkv[rows, :, head].unbind(1)
            mixed[rows, head] = (q @ k.T / math.sqrt(width // heads)).softmax(1) @ v
    h = h + block.attn.to_out(mixed.flatten(1))
    hidden = F.gelu(block.mlp.mlp[0](F.layer_norm(h, (width,), eps=1e-6)), approximate="tanh")
    out: Tensor = h + block.mlp.mlp[2](hidden)
    return out


def plain(model: Any, x: Tensor, layout: Packed) -> Tensor:
    """The whole torso and the output layer by the definition."""
    coords, args = coords_of(layout), model.args
    places = torch.stack([plain_embedding(p, args["model_channels"]) for p in coords.tolist()])
    h = model.input_layer(x) + places
    for number, block in enumerate(model.blocks):
        window = args["window_size"] if args["attn_mode"] == "swin" else None
        shift = window // 2 if window and number % 2 else 0
        h = plain_block(block, h, plain_groups(coords, layout.index, window, shift), args["num_heads"])
    out: Tensor = model.out_layer(F.layer_norm(h, h.shape[1:], eps=1e-5))
    return out


@pytest.mark.parametrize("change", [{}, {"window_size": 3}, {"attn_mode": "full"}])
@torch.no_grad()
def test_torso_against_loops(change: dict[str, Any]) -> None:
    model, layout = awake("SLatRadianceFieldDecoder", CASES["radiance"][1] | change), ragged([20, 0, 1, 40])
    given = inputs(model, layout)
    # The embedding is kept in float32, as published.
    assert (run(model, given, layout) - plain(model, given["x"], layout)).abs().max() < 1e-6


def test_windows_are_those_of_the_block() -> None:
    model, layout = awake(*CASES["gaussians"]), ragged([40])
    given = inputs(model, layout)
    expected = run(model, given, layout)
    model.blocks[1].attn.shift = 0
    assert (run(model, given, layout) - expected).abs().max() > 1e-3


def test_posterior() -> None:
    model, layout = awake(*CASES["encoder"]), ragged()
    x = inputs(model, layout)["x"]
    noise = torch.randn(layout.rows, 3, dtype=x.dtype)
    z, mean, logvar = model(x, layout, return_raw=True)
    assert torch.equal(z, mean)
    assert torch.equal(model(x, layout), mean)
    drawn = model(x, layout, sample_posterior=True, noise=noise)
    assert torch.allclose(drawn, mean + (logvar / 2).exp() * noise)
    torch.manual_seed(0)
    free = model(x, layout, sample_posterior=True)
    torch.manual_seed(0)
    assert torch.allclose(free, mean + (logvar / 2).exp() * torch.randn_like(mean))


def test_start_of_a_gaussian_decoder() -> None:
    """A fresh one puts even, small, faint Gaussians into each voxel's neighbourhood."""
    model, layout = build_model(*CASES["gaussians"]), ragged([5, 0, 3])
    assert isinstance(model, SLatGaussianDecoder)
    splats = model.decode(torch.randn(8, 3), layout)
    assert [len(one) for one in splats] == [20, 0, 12]
    first = splats[0]
    centre = (coords_of(layout)[:5].float() + 0.5) / 8 - 0.5
    spread = (first.xyz.reshape(5, 4, 3) - centre[:, None]) * 8
    assert torch.allclose(spread, hammersley(4).expand(5, 4, 3) - 0.5, atol=1e-5)
    assert torch.allclose(first.opacity, torch.tensor(0.1))
    assert torch.allclose(first.scaling, torch.tensor(math.hypot(4e-3, 9e-4)))
    assert torch.equal(first.rotation, torch.tensor([1.0, 0, 0, 0]).expand(20, 4))


def test_hammersley_points() -> None:
    thirds = [0, 1 / 3, 2 / 3, 1 / 9]
    assert torch.allclose(hammersley(4), torch.tensor([[i / 4, [0, 0.5, 0.25, 0.75][i], thirds[i]] for i in range(4)]))


def gaussian_fields(**changes: Any) -> tuple[Tensor, Any]:
    name, args = CASES["gaussians"]
    model, layout = awake(name, args | {"representation_config": SPLATS | changes}), ragged([6])
    raw = run(model, inputs(model, layout), layout)
    return raw, model.representations(raw, layout)[0]


def test_rows_of_a_gaussian_decoder() -> None:
    raw, splats = gaussian_fields()
    # In this order, each Gaussian's numbers together; times its rate.
    assert torch.allclose(splats.features_dc.reshape(6, 4, 3), raw[:, 12:24].reshape(6, 4, 3) * 0.5)
    assert torch.allclose(splats.raw_rotation.reshape(6, 4, 4), raw[:, 36:52].reshape(6, 4, 4) * 0.1)
    assert torch.allclose(splats.raw_opacity.reshape(6, 4), raw[:, 52:])
    moved = torch.tanh(raw[:, :12].reshape(6, 4, 3) + torch.atanh((2 * hammersley(4).double() - 1) / 1.5))
    centre = (coords_of(ragged([6])).double() + 0.5) / 8
    assert torch.allclose(splats.raw_xyz.reshape(6, 4, 3), centre[:, None] + moved * 0.75 / 8, atol=1e-7)


def test_without_perturbation_the_buffer_stays_out() -> None:
    raw, splats = gaussian_fields(perturb_offset=False)
    centre = (coords_of(ragged([6])).double() + 0.5) / 8
    offset = torch.tanh(raw[:, :12].reshape(6, 4, 3)) * 0.75 / 8
    assert torch.allclose(splats.raw_xyz.reshape(6, 4, 3), centre[:, None] + offset)


@pytest.mark.parametrize("reach", [0.5, 1.0])
def test_a_short_reach_is_finite(reach: float) -> None:
    name, args = CASES["gaussians"]
    model = build_model(name, args | {"representation_config": SPLATS | {"voxel_size": reach}})
    assert isinstance(model, SLatGaussianDecoder)
    assert bool(model.offset_perturbation.isfinite().all())


@pytest.mark.parametrize(("resolution", "depth"), [(8, 3), (12, 3), (64, 6), (1, 0)])
def test_rows_of_a_radiance_decoder(resolution: int, depth: int) -> None:
    model, layout = awake("SLatRadianceFieldDecoder", CASES["radiance"][1] | {"resolution": resolution}), ragged([6, 0])
    assert isinstance(model, SLatRadianceFieldDecoder)
    z = inputs(model, layout)["x"]
    raw, (field, none) = model(z, layout), model.decode(z, layout)
    assert torch.equal(field.trivec, raw[:, :18].reshape(6, 2, 3, 3) + 1)
    assert torch.equal(field.density, raw[:, 18:20])
    assert torch.equal(field.features_dc, raw[:, 20:].reshape(6, 2, 1, 3))
    assert torch.allclose(field.position, (coords_of(layout).double() + 0.5) / resolution)
    assert field.depth.tolist() == [[depth]] * 6
    assert len(none) == 0


def dense_convolution(conv: Any, x: Tensor, coords: Tensor) -> Tensor:
    """A submanifold convolution as a dense one on the scattered grid, read at the voxels."""
    grid = x.new_zeros(1, x.shape[1], *[int(coords.max()) + 1] * 3)
    grid[0, :, coords[:, 0], coords[:, 1], coords[:, 2]] = x.T
    out = F.conv3d(grid, conv.weight.permute(0, 4, 1, 2, 3), conv.bias, padding=1)
    return out[0, :, coords[:, 0], coords[:, 1], coords[:, 2]].T


def plain_norm(norm: Any, x: Tensor) -> Tensor:
    """Group norm of one sample: statistics over its voxels and the group's channels."""
    return F.group_norm(x.T[None], 32, norm.weight, norm.bias, 1e-5)[0].T


def test_subdivision_against_a_dense_grid() -> None:
    block, layout = SparseSubdivideBlock(64, 32).double(), ragged([12])
    for p in block.parameters():
        nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(len(p)))
    x = torch.randn(12, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    corner = torch.cartesian_prod(*[torch.arange(2)] * 3)
    coords = (2 * coords_of(layout)[:, None] + corner).flatten(0, 1)
    h = F.silu(plain_norm(block.act_layers[0], x)).repeat_interleave(8, 0)
    h = dense_convolution(block.out_layers[0].conv, h, coords)
    h = dense_convolution(block.out_layers[3].conv, F.silu(plain_norm(block.out_layers[1], h)), coords)
    skip = block.skip_connection.conv  # its memory is read as [Ci, Co], no transpose
    expected = h + x.repeat_interleave(8, 0) @ skip.weight.reshape(64, 32) + skip.bias
    assert (block(x, layout) - expected).abs().max() < 1e-11 * expected.abs().max()


def mesh_decoder(**changes: Any) -> SLatMeshDecoder:
    model = awake("SLatMeshDecoder", CASES["mesh"][1] | changes)
    assert isinstance(model, SLatMeshDecoder)
    return model


def test_cubes_of_a_mesh_decoder() -> None:
    model, layout = mesh_decoder(), ragged([3, 0, 2])
    raw, fine = model(inputs(model, layout)["x"], layout)
    assert raw.shape == (64 * 5, 101)
    assert fine.lengths_list == [192, 0, 128]
    parents = coords_of(fine).div(4, rounding_mode="floor")
    assert torch.equal(parents, coords_of(layout).repeat_interleave(64, 0))
    assert len(coords_of(fine).unique(dim=0)) == 64 * 5
    corner = torch.cartesian_prod(*[torch.arange(2)] * 3)
    assert torch.equal(coords_of(fine)[:8] % 2, corner)
    assert torch.equal(coords_of(fine)[::8][:8] // 2 % 2, corner)
    fields = model.split_fields(raw)
    assert {k: tuple(v.shape[1:]) for k, v in fields.items()} == {
        "sdf": (8,),
        "deform": (8, 3),
        "weights": (21,),
        "color": (8, 6),
    }


def test_meshes_of_a_mesh_decoder_and_again() -> None:
    """Extraction leaves the decoder's features as they are, so that a second one gives the same."""
    model, layout = mesh_decoder(), ragged([30, 0, 20])
    z = inputs(model, layout)["x"]
    raw, fine = model(z, layout)
    before = raw.clone()
    first, second = model.meshes(raw, fine), model.decode(z, layout)
    assert torch.equal(raw, before)
    assert [one.success for one in first] == [True, False, True]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.vertices, b.vertices)
        assert torch.equal(a.faces, b.faces)
    assert first[0].vertices.abs().max() <= 0.5 + 1 / 64
    assert first[0].vertex_attrs is not None
    plain = mesh_decoder(representation_config={}).decode(z, layout)
    assert plain[0].vertex_attrs is None


def test_start_of_the_decoders() -> None:
    for case in ("encoder", "gaussians", "radiance", "mesh"):
        model, layout = build_model(*CASES[case]), ragged()
        assert not run(model, inputs(model, layout, torch.float32), layout).any()
    assert isinstance(model, SLatMeshDecoder)
    for block in model.upsample:
        assert not any(p.any() for p in block.out_layers[3].parameters())
        assert block.out_layers[0].conv.weight.any()
        assert isinstance(block.act_layers[0], nn.GroupNorm)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("encoder", {"attn_mode": "shift_window"}, "attn_mode: got 'shift_window'; accepted: full, swin"),
        ("encoder", {"attn_mode": "shift_order"}, "attn_mode: got 'shift_order'"),
        ("encoder", {"attn_mode": "swim"}, "unknown attn_mode 'swim'.*did you mean 'swin'"),
        ("encoder", {"window_size": None}, "window_size: got None"),
        ("encoder", {"window_size": 0}, "window_size: got 0"),
        ("encoder", {"pe_mode": "rope"}, "pe_mode: got 'rope'"),
        ("encoder", {"latent_channels": 0}, "latent_channels: got 0"),
        ("gaussians", {"representation_config": {}}, "representation_config.num_gaussians is missing; got nothing"),
        ("gaussians", {"representation_config": SPLATS | {"num_gaussians": 0}}, "num_gaussians: got 0"),
        ("gaussians", {"representation_config": SPLATS | {"voxel_size": 0}}, "voxel_size: got 0"),
        ("gaussians", {"representation_config": SPLATS | {"lr": {"_xzy": 1}}}, "'_xzy'.*did you mean '_xyz'"),
        ("gaussians", {"representation_config": SPLATS | {"lr": {"_xyz": 1}}}, "_features_dc, _scaling.* missing"),
        ("radiance", {"representation_config": {"rank": 2}}, "representation_config.dim is missing; got rank"),
        ("mesh", {"model_channels": 128}, "model_channels: got 128; accepted: a multiple of 8 times the groups"),
    ],
)
def test_refusals(case: str, change: dict[str, Any], message: str) -> None:
    name, args = CASES[case]
    with pytest.raises(FewstepError, match=message):
        build_model(name, args | change)


def test_noise_that_does_not_fit() -> None:
    model, layout = awake(*CASES["encoder"]), ragged()
    x = inputs(model, layout)["x"]
    with pytest.raises(FewstepError, match="shape of noise"):
        model(x, layout, sample_posterior=True, noise=x[:5])


def test_number_of_heads_from_their_width() -> None:
    name, args = CASES["encoder"]
    model: Any = build_model(name, args | {"num_heads": None, "num_head_channels": 4})
    assert VAE["num_heads"] == 2
    assert model.blocks[0].attn.heads == 4
