"""TRELLIS.2's flows and guided samplers in configurations drawn at random, against the references written out."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from fewstep_trellis2.latents import ShapeStage
from fewstep_trellis2.models import SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis2.structure import StructureStage
from test_trellis2_flows import SHAPE, STRUCTURE, built, randn, reference
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid


def drawn(draw: Random) -> dict[str, Any]:
    heads = draw.choice([1, 2, 3])
    sizes = {"num_heads": heads, "model_channels": heads * draw.choice([6, 8, 14, 64, 128]), "cond_channels": 7}
    switches = {name: draw.random() < 0.5 for name in ("share_mod", "qk_rms_norm", "qk_rms_norm_cross")}
    more = {"num_blocks": draw.choice([1, 3]), "mlp_ratio": draw.choice([1, 2.3334, 5.3334]), "pe_mode": "rope"}
    return {"in_channels": 3, "out_channels": draw.choice([1, 3]), **sizes, **switches, **more}


@pytest.mark.parametrize("seed", range(4))
def test_flows(seed: int) -> None:
    """Of one cell and of more, of objects without a voxel, with one, with many, under tokens of other lengths each."""
    draw = Random(seed)
    args, side = drawn(draw), draw.choice([1, 2, 5])
    model = built(SparseStructureFlowModel, args | {"resolution": side}, seed)
    x, t, cond = randn(2, 3, side, side, side), 1000 * torch.rand(2).double(), randn(2, 5, 7, seed=3)
    grid, out = torch.cartesian_prod(*[torch.arange(side)] * 3).reshape(-1, 3), model(x, t, cond)
    for i in range(2):
        wanted = reference(model, x[i].flatten(1).T, grid, float(t[i]), cond[i]).T.reshape(out[i].shape)
        torch.testing.assert_close(out[i], wanted, rtol=1e-5, atol=1e-5)

    model = built(SLatFlowModel, args | {"resolution": 32}, seed)
    lengths = [1, 0, draw.choice([2, 17]), 0, 1]
    coords, count = torch.randint(0, 96, (sum(lengths), 3)), len(lengths)
    x, t = randn(len(coords), 3), 1000 * torch.rand(count).double()
    conds = [randn(draw.choice([1, 6]), 7, seed=i) for i in range(count)]
    out = model(x, t, conds, Packed.of_lengths(lengths, coords))
    for i, (own, where, got) in enumerate(zip(*(part.split(lengths) for part in (x, coords, out)), strict=True)):
        if lengths[i]:
            wanted = reference(model, own, where, float(t[i]), conds[i])
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def spread(x: Tensor, dense: bool) -> Tensor:
    return x.std() if dense else (x.square().mean() - x.mean() ** 2).sqrt()


@pytest.mark.parametrize("kind", ["dense", "packed"])
@pytest.mark.parametrize(
    ("steps", "warp", "scale", "rescale", "interval"),
    [
        (1, 5.0, 7.5, 0.7, (0.6, 1.0)),
        (1, 3.0, 7.5, 1.0, (0.6, 0.9)),  # no time of it lies in the interval
        (2, 3.0, 0.0, 1.0, (0.0, 1.0)),
        (4, 1.0, 3.0, 0.0, (0.25, 0.5)),  # both ends are times of the grid
        (12, 3.0, 7.5, 0.5, (0.6, 1.0)),  # the ninth time is 0.6
        (12, 5.0, 7.5, 1.0, (0.0, 1.0)),
    ],
)
def test_samplers(
    kind: str, steps: int, warp: float, scale: float, rescale: float, interval: tuple[float, float]
) -> None:
    dense, lengths, noise_left = kind == "dense", [5, 3], 1e-5
    model: Any = (
        built(SparseStructureFlowModel, STRUCTURE) if dense else built(SLatFlowModel, SHAPE | {"in_channels": 3})
    )
    layout = Dense(2) if dense else Packed.of_lengths(lengths, torch.randint(0, 30, (8, 3)))
    noise, cond = randn(2, 2, 3, 3, 3) if dense else randn(8, 3), Condition(randn(2, 4, 6), randn(2, 4, 6, seed=5))
    where = () if dense else (layout,)

    def parts(x: Tensor) -> list[Tensor]:
        return list(x) if dense else list(x.split(lengths))

    x = noise
    for t, s in pairwise([warp * u / (1 + (warp - 1) * u) for u in (1 - i / steps for i in range(steps + 1))]):
        at, sigma = torch.full((2,), 1000 * t).double(), noise_left + (1 - noise_left) * t
        v = plain = model(x, at, cond.tokens, *where)
        if interval[0] <= t <= interval[1]:
            other = model(x, at, cond.negative_tokens, *where)
            v = scale * plain + (1 - scale) * other
            if scale:
                moved = []
                for z, own, guided in zip(parts(x), parts(plain), parts(v), strict=True):
                    data, changed = ((1 - noise_left) * z - sigma * u for u in (own, guided))
                    kept = rescale * spread(data, dense) / spread(changed, dense) + 1 - rescale
                    moved.append(((1 - noise_left) * z - kept * changed) / sigma)
                v = torch.stack(moved) if dense else torch.cat(moved)
        x = x - (t - s) * v
    field = Teacher(StructureStage(model) if dense else ShapeStage(model), Guidance(scale, interval, rescale))
    made = euler(field, noise, cond, layout, step_grid(steps, warp), Step(0, Interpolant(noise_left)))
    torch.testing.assert_close(made, x.detach(), rtol=1e-4, atol=1e-5)
