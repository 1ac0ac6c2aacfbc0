"""The SLat flow's forward and backward on a CPU, against the same model in plain operations, in one run.

Plain operations are those of a naive implementation, and of the reference behind the golden data: attention by a loop
over samples with an explicit softmax, convolution by gather, matrix product and scatter, with every map rebuilt at
every call. Weights and inputs are the same; outputs and gradients must agree. Run:

    python -m pytest benchmarks/kernels/test_slat_cpu.py --benchmark-json=benchmarks/kernels/results/slat_cpu.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
import torch
from fewstep_trellis.models import SLatFlowModel, sparse_layers
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.table import forcing

VOXELS, BATCH, WIDTH, BLOCKS, EDGE, ROUNDS = 12_000, 2, 256, 6, 64, 3


def shell(count: int, seed: int) -> Tensor:
    """[count, 3] the voxels nearest to a wavy sphere in a 64^3 grid: a surface, like TRELLIS's voxels."""
    grid = torch.cartesian_prod(*[torch.arange(EDGE)] * 3)
    offset = (grid + 0.5) / EDGE - 0.5
    angle = torch.atan2(offset[:, 1], offset[:, 0])
    radius = 0.33 + 0.03 * torch.sin((3 + seed) * angle) + 0.03 * torch.cos(9 * offset[:, 2])
    return grid[(offset.norm(dim=1) - radius).abs().argsort()[:count]]


class Case:
    """A model with random weights, a batch, and one training pass over it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = SLatFlowModel(
            EDGE, 8, WIDTH, WIDTH, 8, BLOCKS, num_heads=4, io_block_channels=[64], qk_rms_norm=True
        )
        for parameter in self.model.parameters():  # no zero-initialised parameter, so that every gradient is compared
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1)
        # Two samples of unequal length.
        lengths = [VOXELS * 5 // 12, VOXELS * 7 // 12]
        self.coords = torch.cat([shell(n, i) for i, n in enumerate(lengths)])
        self.lengths, self.x = lengths, torch.randn(VOXELS, 8)
        self.t, self.cond = torch.tensor([300.0, 700.0]), torch.randn(BATCH, 256, WIDTH)

    def layout(self) -> Packed:
        return Packed.of_lengths(self.lengths, self.coords)

    def step(self, layout: Packed) -> list[Tensor]:
        """The output and every parameter's gradient."""
        self.model.zero_grad()
        out = self.model(self.x, self.t, self.cond, layout)
        out.square().mean().backward()
        return [out.detach(), *(p.grad for p in self.model.parameters() if p.grad is not None)]


def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor, layout: Packed) -> Tensor:
    """Gather, product, scatter at each of 27 offsets; the sorted list of voxels is rebuilt at every call."""
    assert layout.coords is not None
    place = torch.cat([layout.index[:, None], layout.coords.long() + 1], 1)

    def key(place: Tensor) -> Tensor:
        return ((place[:, 0] * (EDGE + 2) + place[:, 1]) * (EDGE + 2) + place[:, 2]) * (EDGE + 2) + place[:, 3]

    ordered, order = key(place).sort()
    out = x.new_zeros(len(x), weight.shape[0])
    for i, j, k in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
        wanted = key(place + torch.tensor([0, i - 1, j - 1, k - 1]))
        at = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
        rows = (ordered[at] == wanted).nonzero()[:, 0]
        out = out.index_add(0, rows, x[order[at[rows]]] @ weight[:, i, j, k].T)
    return out + bias


@contextmanager
def plain() -> Iterator[None]:
    """Reference implementations of all ops, and layouts that cache nothing."""
    with pytest.MonkeyPatch.context() as patch, forcing("reference"):
        patch.setattr(Packed, "once", lambda self, key, build, beside=None: build())
        patch.setattr(sparse_layers, "submanifold_conv", plain_convolution)
        yield


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def test_forward_and_backward(case: Case, benchmark: Any) -> None:
    """Ours is timed by pytest-benchmark, plain rounds in between; the ratio of medians must be at least 1.5."""
    kept = case.layout()
    ours, theirs = case.step(kept), None
    with plain():
        theirs = case.step(case.layout())
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())
    seconds: list[float] = []

    def before() -> None:
        with plain():
            seconds.append(timed(lambda: case.step(case.layout())))

    benchmark.pedantic(lambda: case.step(kept), setup=before, rounds=ROUNDS)
    ratio = median(seconds) / benchmark.stats.stats.median
    benchmark.extra_info.update(
        plain_seconds=[round(s, 3) for s in seconds],
        ratio_of_medians=round(ratio, 2),
        ratio_of_minima=round(min(seconds) / benchmark.stats.stats.min, 2),
        voxels=VOXELS,
        tokens=len(kept.once(("pooling", 2), lambda: None).coarse.index),  # type: ignore[attr-defined]
        width=WIDTH,
        blocks=BLOCKS,
        batch=BATCH,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    assert ratio >= 1.5
