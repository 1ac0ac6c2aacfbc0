"""TRELLIS.2's autoencoders against dense grids and loops, and the dual grid's mesh against the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import trimesh
from fewstep_shapes3d.export import write_glb
from fewstep_shapes3d.export.glb import read_tree
from fewstep_shapes3d.parts import largest_mesh
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.geometry import coords_of
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis2.mesh.dual_grid import DualGrid
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.vae import FlexiDualGridVaeDecoder, FlexiDualGridVaeEncoder, SparseUnetVaeDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError

NEXT, UP, DOWN = "SparseConvNeXtBlock3d", "SparseResBlockC2S3d", "SparseResBlockS2C3d"
SMALL: dict[str, Any] = {
    "model_channels": [32, 16, 8],
    "latent_channels": 4,
    "num_blocks": [1, 0, 1],
    "block_type": [NEXT] * 3,
    "up_block_type": [UP] * 2,
    "block_args": [{}, {}, {"mlp_ratio": 2.0}],
}
ENCODER = {key: value for key, value in SMALL.items() if key != "up_block_type"}
ENCODER |= {"model_channels": [8, 16, 32], "down_block_type": [DOWN] * 2}


def random(model: Any, seed: int = 0) -> Any:
    """Float64 weights none of which is zero."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.double().eval().requires_grad_(False).parameters():
        wide = parameter[0].numel() if parameter.ndim > 1 else 100.0
        parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / wide**0.5)
    return model


def voxels(resolution: int, counts: tuple[int, ...] = (9, 20), seed: int = 1) -> Packed:
    """Samples of random voxels in random order."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    rows = [grid[torch.randperm(len(grid), generator=draw)[:count]] for count in counts]
    return Packed.of_lengths(list(counts), torch.cat(rows).int())


def normal(layout: Packed, channels: int, seed: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(layout.rows, channels, generator=draw, dtype=torch.float64)


Places = list[tuple[int, ...]]  # (sample, x, y, z) of each row


def places(layout: Packed) -> Places:
    return [tuple(row) for row in torch.cat([layout.index[:, None], coords_of(layout)], 1).tolist()]


def plain_conv(x: Tensor, rows: Places, conv: Any) -> Tensor:
    """A dense convolution of each sample's grid, read where there are voxels."""
    index = torch.tensor(rows)
    grid = x.new_zeros(int(index[:, 0].max()) + 1, x.shape[1], *[int(index[:, 1:].max()) + 1] * 3)
    b, i, j, k = index.unbind(1)
    grid[b, :, i, j, k] = x
    return F.conv3d(grid, conv.weight.permute(0, 4, 1, 2, 3), conv.bias, padding=1)[b, :, i, j, k]


def plain_norm(x: Tensor, norm: Any = None) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    out = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return out if norm is None else out * norm.weight + norm.bias


def plain_next(block: Any, x: Tensor, rows: Places) -> Tensor:
    h = plain_norm(plain_conv(x, rows, block.conv), block.norm)
    hidden = h @ block.mlp[0].weight.T + block.mlp[0].bias
    out: Tensor = x + (hidden * hidden.sigmoid()) @ block.mlp[2].weight.T + block.mlp[2].bias
    return out


def plain_children(logits: Tensor, rows: Places) -> list[tuple[int, int]]:
    return [(row, child) for row in range(len(rows)) for child in range(8) if logits[row, child] > 0]


def plain_up(block: Any, x: Tensor, rows: Places, logits: Tensor) -> tuple[Tensor, Places]:
    out = block.out_channels
    inner = plain_conv(F.silu(plain_norm(x, block.norm1)), rows, block.conv1)
    born, h, skip = list[tuple[int, ...]](), [], []
    for row, child in plain_children(logits, rows):
        b, i, j, k = rows[row]
        born.append((b, 2 * i + child % 2, 2 * j + child // 2 % 2, 2 * k + child // 4))
        h.append(inner[row, child * out : (child + 1) * out])
        width = x.shape[1] // 8
        own = x[row, child * width : (child + 1) * width]
        skip.append(torch.stack([own[c * width // out] for c in range(out)]))
    h_fine = plain_conv(F.silu(plain_norm(torch.stack(h))), born, block.conv2)
    return h_fine + torch.stack(skip), born


def plain_decode(model: Any, z: Tensor, layout: Packed, guide: list[Tensor]) -> tuple[Tensor, Places, list[Tensor]]:
    h, rows, found = z @ model.from_latent.weight.T + model.from_latent.bias, places(layout), []
    for level, blocks in enumerate(model.blocks):
        for block in blocks[: model.num_blocks[level]]:
            h = plain_next(block, h, rows)
        if level + 1 < len(model.blocks):
            up = blocks[-1]
            logits = guide[level] if guide else h @ up.to_subdiv.weight.T + up.to_subdiv.bias
            found.append(logits)
            h, rows = plain_up(up, h, rows, logits)
    centred = h - h.mean(1, keepdim=True)
    h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return h @ model.output_layer.weight.T + model.output_layer.bias, rows, found


COUNTS = [(9, 20), (1,), (0, 12, 1)]  # voxels of each object: also of none, and of one


@pytest.mark.parametrize("counts", COUNTS)
def test_the_shape_decoder_against_dense_grids(counts: tuple[int, ...]) -> None:
    model, layout = random(FlexiDualGridVaeDecoder(resolution=16, **SMALL)), voxels(4, counts)
    z = normal(layout, 4)
    made, (raw, rows, logits) = model(z, layout), plain_decode(model, z, layout, [])
    assert places(made.layout) == rows
    assert len(rows) > layout.rows
    torch.testing.assert_close(made.features, raw, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(made.subdivisions, logits, strict=True):
        torch.testing.assert_close(found.logits, wanted, rtol=1e-10, atol=1e-10)
    assert places(model.upsample(z, layout, 2)) == rows
    assert places(model.upsample(z, layout, 1)) == places(made.subdivisions[0].layout)
    assert model.upsample(z, layout, 0) is layout


def test_the_texture_decoder_follows_the_shape_decoder() -> None:
    layout = voxels(4)
    shape = random(FlexiDualGridVaeDecoder(resolution=16, **SMALL))(normal(layout, 4), layout)
    model = random(SparseUnetVaeDecoder(out_channels=6, **SMALL, pred_subdiv=False), 3)
    z = normal(layout, 4, 5)
    made = model(z, layout, shape.subdivisions)
    raw, rows, _ = plain_decode(model, z, layout, [step.logits for step in shape.subdivisions])
    torch.testing.assert_close(made.features, raw, rtol=1e-10, atol=1e-10)
    assert places(made.layout) == rows == places(shape.layout)
    assert not any("to_subdiv" in key for key in model.state_dict())
    with pytest.raises(FewstepError, match="guide: got 0 subdivisions; accepted: 2, of the shape decoder"):
        model(z, layout)


@pytest.mark.parametrize("counts", [(60, 7), (1,), (0, 30, 1)])
def test_the_encoder_against_dense_grids(counts: tuple[int, ...]) -> None:
    model, layout = random(FlexiDualGridVaeEncoder(**ENCODER)), voxels(8, counts)
    vertices, crossed = normal(layout, 3).sigmoid(), normal(layout, 3, 4) > 0
    mean, logvar, coarse = model.encode(vertices, crossed, layout)
    rows = places(layout)
    h = torch.cat([vertices - 0.5, crossed.double() - 0.5], 1) @ model.input_layer.weight.T + model.input_layer.bias
    for level, blocks in enumerate(model.blocks):
        for block in blocks[: model.num_blocks[level]]:
            h = plain_next(block, h, rows)
        if level == 2:
            break
        down = blocks[-1]
        inner = plain_conv(F.silu(plain_norm(h, down.norm1)), rows, down.conv1)
        parents = sorted({(b, i // 2, j // 2, k // 2) for b, i, j, k in rows})
        joined, skip = (h.new_zeros(len(parents), 8 * width) for width in (inner.shape[1], h.shape[1]))
        for row, (b, i, j, k) in enumerate(rows):
            parent, child = parents.index((b, i // 2, j // 2, k // 2)), i % 2 + 2 * (j % 2) + 4 * (k % 2)
            for target, source in ((joined, inner), (skip, h)):
                width = source.shape[1]
                target[parent, child * width : (child + 1) * width] = source[row]
        group = skip.shape[1] // down.out_channels
        means = torch.stack([skip[:, c * group : (c + 1) * group].mean(1) for c in range(down.out_channels)], 1)
        h, rows = plain_conv(F.silu(plain_norm(joined)), parents, down.conv2) + means, parents
    out = F.layer_norm(h, h.shape[1:]) @ model.to_latent.weight.T + model.to_latent.bias
    assert places(coarse) == rows
    torch.testing.assert_close(torch.cat([mean, logvar], 1), out, rtol=1e-10, atol=1e-10)


OFFICIAL = {
    "model_channels": [1024, 512, 256, 128, 64],
    "latent_channels": 32,
    "num_blocks": [4, 16, 8, 4, 0],
    "block_type": [NEXT] * 5,
    "up_block_type": [UP] * 4,
    "block_args": [{"use_checkpoint": True}] * 5,
    "use_fp16": True,
}


def test_the_official_shape_decoder() -> None:
    model = build_model("FlexiDualGridVaeDecoder", {"resolution": 512, **OFFICIAL}, "meta", MODELS)
    state = model.state_dict()
    assert sum(value.numel() for value in state.values()) == 474_231_463
    assert state["blocks.1.15.conv.weight"].shape == (512, 3, 3, 3, 512)
    half = {key for key, value in state.items() if value.dtype is torch.float16}
    assert {key for key in state if "norm" in key or not key.startswith("blocks")}.isdisjoint(half)
    assert {"blocks.0.0.conv.weight", "blocks.0.0.mlp.2.bias", "blocks.0.4.to_subdiv.weight"} <= half


def test_loading_is_strict(tmp_path: Path) -> None:
    """Files of upstream's other convolution have their weights one level deeper; upstream leaves them random then."""
    model = random(FlexiDualGridVaeDecoder(resolution=16, **SMALL)).float()
    path = save_model(model, tmp_path / "shape")
    torch.testing.assert_close(load_model(path, models=MODELS).state_dict(), model.state_dict())
    moved = {key.replace("conv.weight", "conv.conv.weight"): value for key, value in load_file(path).items()}
    save_file(moved, path)
    with pytest.raises(FewstepError, match=r"does not fit FlexiDualGridVaeDecoder: 2 missing: blocks.0.0.conv.weight"):
        load_model(path, models=MODELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_type": [NEXT, NEXT, "SparseResBlock3d"]}, "unknown block_type 'SparseResBlock3d'"),
        ({"up_block_type": [UP]}, "up_block_type: got 1; accepted: 2"),
        ({"block_args": [{}]}, "block_args: got 1 levels; accepted: 3"),
        ({"model_channels": [36, 16, 8]}, "model_channels: got 36; accepted: a multiple of 8"),
        ({"latent_channels": 0}, "latent_channels: got 0"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        build_model("FlexiDualGridVaeDecoder", {"resolution": 16, **SMALL, **change}, "meta", MODELS)


def test_a_decoder_that_leaves_no_voxel_says_so() -> None:
    model, layout = random(FlexiDualGridVaeDecoder(resolution=16, **SMALL)), voxels(4)
    model.blocks[0][-1].to_subdiv.bias.fill_(-1e3)
    with pytest.raises(FewstepError, match="no voxel is left after level 0"):
        model(normal(layout, 4), layout)


def plain_faces(grid: DualGrid, resolution: int) -> list[tuple[int, int, int]]:
    """Quads voxel by voxel and axis by axis, split along one diagonal."""
    rows = places(grid.layout)
    known = {place: row for row, place in enumerate(rows)}
    found = []
    steps = {
        0: [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
        1: [(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)],
        2: [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)],
    }
    for b, i, j, k in rows:
        for axis in range(3):
            if not grid.intersected[known[b, i, j, k], axis]:
                continue
            around = [(b, i + x, j + y, k + z) for x, y, z in steps[axis]]
            if not all(place in known and max(place[1:]) < resolution for place in around):
                continue
            q = [known[place] for place in around]
            w = [1.0] * 4 if grid.weight is None else [float(grid.weight[row]) for row in q]
            first = grid.weight is None or w[0] * w[2] > w[1] * w[3]
            found += [(q[0], q[1], q[2]), (q[0], q[2], q[3])] if first else [(q[0], q[1], q[3]), (q[3], q[1], q[2])]
    return found


def dual_grid(counts: tuple[int, ...] = (80, 50), weighted: bool = True) -> DualGrid:
    layout = voxels(5, counts)
    weight = normal(layout, 1, 9)[:, 0].exp() if weighted else None
    return DualGrid(layout, normal(layout, 3).sigmoid() * 2 - 0.5, normal(layout, 3, 8) > -0.5, weight)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("resolution", [5, 4])
def test_faces_of_a_dual_grid(weighted: bool, resolution: int) -> None:
    grid = dual_grid(weighted=weighted)
    wanted = plain_faces(grid, resolution)
    assert len(wanted) > 30
    assert grid.faces(grid.quads(resolution)).tolist() == [list(face) for face in wanted]
    first, second = grid.meshes(resolution)
    start = grid.layout.lengths_list[0]
    assert [*first.faces.tolist(), *(second.faces + start).tolist()] == [list(face) for face in wanted]
    expected = (coords_of(grid.layout)[start:] + grid.vertex[start:]) / resolution - 0.5
    torch.testing.assert_close(second.vertices, expected)


def test_centres_of_quads_lie_between_their_diagonals() -> None:
    grid = dual_grid()
    points, quads = grid.points(5), grid.quads(5)
    vertices, faces = grid.with_centres(points, quads)
    assert grid.weight is not None
    for number, (a, b, c, d) in enumerate(quads.tolist()):
        w = grid.weight[[a, b, c, d]]
        first, second = w[0] * w[2], w[1] * w[3]
        middle = first * (points[a] + points[c]) / 2 + second * (points[b] + points[d]) / 2
        row = len(points) + number
        torch.testing.assert_close(vertices[row], middle / (first + second))
        assert faces[4 * number : 4 * number + 4].tolist() == [[a, b, row], [b, c, row], [c, d, row], [d, a, row]]


def test_a_sphere_is_closed_and_of_its_size() -> None:
    n, radius = 16, 0.37
    cells = torch.cartesian_prod(*[torch.arange(n)] * 3)

    def inside(corner: Tensor) -> Tensor:
        return (corner / n - 0.5).norm(dim=1) < radius

    corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
    around = torch.stack([inside(cells + corner) for corner in corners])
    cells = cells[around.any(0) & ~around.all(0)]
    upper = inside(cells + 1)
    axes = torch.eye(3, dtype=torch.long)
    crossed = torch.stack([inside(cells + 1 - axes[axis]) != upper for axis in range(3)], 1)
    outward = (cells + 0.5) / n - 0.5
    vertex = (radius * outward / outward.norm(dim=1, keepdim=True) + 0.5) * n - cells
    (mesh,) = DualGrid(Packed.of_lengths([len(cells)], cells), vertex, crossed).meshes(n)
    edges = torch.cat([mesh.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]).sort(1).values
    assert (edges.unique(dim=0, return_counts=True)[1] == 2).all()
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1).abs().sum() / 6  # star-shaped, so the sides do not matter
    assert float(volume) == pytest.approx(4 / 3 * torch.pi * radius**3, rel=0.02)


def test_attributes_at_vertices() -> None:
    grid = dual_grid((125, 60))  # the first sample has all voxels of its grid
    values, known = normal(grid.layout, 2, 11), {place: row for row, place in enumerate(places(grid.layout))}
    found = grid.at_vertices(values)
    for row, (b, *cell) in enumerate(places(grid.layout)):
        point = [c + float(v) - 0.5 for c, v in zip(cell, grid.vertex[row], strict=True)]  # in units of centres
        total, out = 0.0, torch.zeros(2, dtype=torch.float64)
        for place, other in known.items():
            weight = 1.0
            for p, c in zip(point, place[1:], strict=True):
                weight *= max(0.0, 1 - abs(p - c))
            if place[0] == b:
                total, out = total + weight, out + weight * values[other]
        torch.testing.assert_close(found[row], out / total if total else out)


def test_attributes_become_colours_and_a_material(tmp_path: Path) -> None:
    grid = dual_grid((125, 60))
    attributes = normal(grid.layout, 6, 12).sigmoid()
    mesh = grid.meshes(5, attributes)[0]
    wanted = grid.at_vertices(attributes)[:125]
    assert mesh.colours is not None
    assert mesh.material is not None
    torch.testing.assert_close(torch.cat([mesh.colours, mesh.material], 1), wanted)
    path = write_glb(mesh, tmp_path / "a.glb")
    factors = read_tree(path)["materials"][0]["pbrMetallicRoughness"]
    assert factors["metallicFactor"] == pytest.approx(float(wanted[:, 3].mean()), abs=1e-6)
    assert factors["roughnessFactor"] == pytest.approx(float(wanted[:, 4].mean()), abs=1e-6)
    (read,) = trimesh.load(path, process=False).geometry.values()
    assert read.vertex_attributes["_METALLIC"].ravel() == pytest.approx(wanted[:, 3].numpy(), abs=1e-6)
    assert read.vertex_attributes["_ROUGHNESS"].ravel() == pytest.approx(wanted[:, 4].numpy(), abs=1e-6)
    opacity = read.visual.vertex_attributes["color"][:, 3]
    assert opacity == pytest.approx((wanted[:, 5].numpy() * 255).round(), abs=1)


def test_the_largest_part_keeps_its_material() -> None:
    vertices, faces = torch.rand(7, 3), torch.tensor([[4, 5, 6], [0, 1, 2], [1, 2, 3]])
    material = torch.arange(21.0).reshape(7, 3)
    kept = largest_mesh(Mesh(vertices, faces, material=material))
    assert kept.material is not None
    torch.testing.assert_close(kept.material, material[:4])
