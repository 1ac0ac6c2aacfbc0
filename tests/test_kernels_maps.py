"""Neighbour maps and windows by kernels: equal to those of torch's own ops and to plain loops, in few launches."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from fewstep_kernels.attention.windows import sequences
from fewstep_shapes3d.sparse import submanifold_conv, windowed_attention
from fewstep_shapes3d.sparse.geometry import neighbours
from fewstep_shapes3d.sparse.windows import windows
from fewstep_trellis.models import SLatFlowModel, SLatRadianceFieldDecoder
from kernel_helpers import DEVICE, launches_of
from torch import nn

from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError

plan = pytest.importorskip("fewstep_kernels.convolution.plan", reason="Triton is not installed")
_order, mapped, tiles = plan._order, plan.mapped, plan.tiles
pytestmark = pytest.mark.usefixtures("triton_only")
Place = tuple[int, ...]


def drawn(lengths: list[int], edge: int, low: int = 0, dtype: torch.dtype = torch.int64, seed: int = 0) -> Packed:
    """Distinct voxels in a cube from ``low`` up, rows in random order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(*[torch.arange(edge)] * 3) + low
    coords = torch.cat([cells[torch.randperm(edge**3, generator=generator)[:n]] for n in lengths])
    return Packed.of_lengths(lengths, coords.to(DEVICE, dtype), DEVICE)


def corners() -> Packed:
    """Voxels on the faces and edges of their box, rows of which touch only in the numbering of cells."""
    ends = torch.tensor(list(product((-7, 5), repeat=3)))
    return Packed.of_lengths([8, 8], torch.cat([ends, ends.flip(0)]).to(DEVICE), DEVICE)


LAYOUTS: dict[str, Any] = {
    "ragged": lambda: drawn([70, 0, 1, 40], 6),
    "full cubes": lambda: drawn([27, 27], 3),
    "one voxel": lambda: drawn([1], 1, low=9),
    "below zero": lambda: drawn([50, 30], 5, low=-9, dtype=torch.int32),
    "bytes": lambda: drawn([0, 40, 0], 5, low=250, dtype=torch.uint8),
    "large batch": lambda: drawn([0, 3, 1, 0, 7] * 12, 4, low=-2),
    "corners": corners,
    "sliced": lambda: Packed.of_lengths([40], drawn([40], 5).coords.repeat(1, 2)[:, 1:4].contiguous().mT.mT, DEVICE),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Packed:
    """A new one for each test: what is derived from it is kept on it."""
    made: Packed = LAYOUTS[request.param]()
    return made


def places(layout: Packed) -> list[Place]:
    """(sample, x, y, z) of each row."""
    assert layout.coords is not None
    return [(b, *xyz) for b, xyz in zip(layout.index.tolist(), layout.coords.tolist(), strict=True)]


def fresh(layout: Packed) -> Packed:
    return Packed(layout.cu_seqlens, layout.coords)


@pytest.mark.parametrize("edge", [1, 3])
def test_neighbours(layout: Packed, edge: int) -> None:
    same_as_looked_up(layout, edge)


def test_neighbours_within_two_steps() -> None:
    same_as_looked_up(drawn([30, 0, 1], 4, low=-3), 5)


def same_as_looked_up(layout: Packed, edge: int) -> None:
    got = mapped(layout, edge).table
    row_at = {place: row for row, place in enumerate(places(layout))}
    line = range(-(edge // 2), edge // 2 + 1)
    for found, (i, j, k) in zip(got.tolist(), product(line, repeat=3), strict=True):
        assert found == [row_at.get((b, x + i, y + j, z + k), -1) for b, x, y, z in places(layout)]
    assert torch.equal(got, neighbours(fresh(layout), edge).table)


@pytest.mark.parametrize("edge", [3, 5])
def test_rows_are_in_gray_order(layout: Packed, edge: int) -> None:
    table = neighbours(layout, edge).table
    middle, reach = len(table) // 2, min(len(table) // 2, 31)
    others = [k for k in range(middle - reach, middle + reach + 1) if k != middle]
    codes = [sum(int(table[k, row] >= 0) << i for i, k in enumerate(others)) for row in range(layout.rows)]
    ranks = []
    for code in codes:
        rank = code
        while code := code >> 1:
            rank ^= code
        ranks.append(rank)
        assert rank ^ rank >> 1 == codes[len(ranks) - 1]  # the Gray code of the rank
    assert _order(table).tolist() == sorted(range(layout.rows), key=lambda row: ranks[row])


@pytest.mark.parametrize(("size", "shift"), [(1, 0), (2, 1), (8, 4), (3, -5)])
def test_windows(layout: Packed, size: int, shift: int) -> None:
    cells = [(b, *((c + shift) // size for c in xyz)) for b, *xyz in places(layout)]
    order = sorted(range(layout.rows), key=lambda row: cells[row])
    begins = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(order)) if cells[a] != cells[b]), layout.rows]
    seq = sequences(layout, size, shift)
    made, plain = windows(layout, size, shift), windows(fresh(layout), size, shift)
    for found in (made, plain):
        assert found.order.tolist() == order
        assert found.order[found.inverse].tolist() == list(range(layout.rows))
        assert found.layout.cu_seqlens.tolist() == begins
        assert [x.dtype for x in (found.order, found.inverse)] == [torch.int64, torch.int64]
    assert seq.order is made.order
    assert seq.order32 is not None
    assert seq.order32.dtype == torch.int32
    assert seq.order32.tolist() == order


def test_windows_with_more_cells_than_32_bits_number() -> None:
    far = torch.tensor([[0, 0, 0], [5000, 5000, 5000], [0, 0, 1], [4999, 0, 5000]], device=DEVICE)
    layout = Packed.of_lengths([2, 2], far, DEVICE)
    sequences(layout, 2, 0)
    assert windows(layout, 2).order.tolist() == [0, 1, 2, 3]
    assert windows(layout, 2).layout.lengths_list == [1, 1, 1, 1]


def test_nothing_at_all() -> None:
    layout = drawn([0, 0], 1)
    assert mapped(layout, 3).table.shape == (27, 0)
    assert sequences(layout, 4, 2).q.lengths_list == [0]


def test_a_large_box_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = drawn([70, 0, 1, 40], 6)
    wanted = mapped(layout, 3).table
    monkeypatch.setattr("fewstep_kernels.convolution.plan.TABLE_LIMIT", 10)
    monkeypatch.setattr("fewstep_shapes3d.sparse.geometry.TABLE_LIMIT", 10)
    assert torch.equal(mapped(layout, 3).table, wanted)


def test_two_rows_at_one_place_are_refused() -> None:
    coords = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1]], device=DEVICE)
    mapped(Packed.of_lengths([2, 1], coords, DEVICE), 3)
    with pytest.raises(FewstepError, match="each voxel once"):
        mapped(Packed.of_lengths([3], coords, DEVICE), 3)


def test_windows_inside_a_transform() -> None:
    """Where a kernel could be given no memory, torch's own ops make them."""
    layout, x = drawn([8, 5], 3), torch.randn(13, 1, 16, device=DEVICE)

    def loss(x: torch.Tensor, where: Packed) -> torch.Tensor:
        return windowed_attention(x, x, x, where, 2).square().sum()

    wanted = torch.func.grad(loss)(x, layout)
    known = fresh(layout)
    sequences(known, 2, 0)
    torch.testing.assert_close(wanted, torch.func.grad(loss)(x, known))


def test_launches_of_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, x = drawn([90, 30], 6), torch.randn(120, 16, device=DEVICE)
    w = torch.randn(16, 3, 3, 3, 16, device=DEVICE)
    with launches_of(monkeypatch) as launches, torch.no_grad():
        submanifold_conv(x, w, None, layout)
        first = launches.taken()
        submanifold_conv(x, w, None, layout)
        again = launches.taken()
        tiles(layout, 3, 32)
        more = launches.taken()
        mapped(layout, 5)
        larger = launches.taken()
    assert again == {"conv_kernel": 1}
    assert first - again == {
        "aminmax": 1, "stack": 1, "full": 1, "put_kernel": 1, "find_kernel": 1, "code_kernel": 1, "sort": 1,
        "tiles_kernel": 1,
    }  # fmt: skip
    assert more == {"tiles_kernel": 1}
    assert larger == {"full": 1, "put_kernel": 1, "find_kernel": 1}


def test_launches_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, x = drawn([90, 30], 6), torch.randn(120, 1, 16, device=DEVICE)
    with launches_of(monkeypatch) as launches, torch.no_grad():
        windowed_attention(x, x, x, layout, 4)
        first = launches.taken()
        windowed_attention(x, x, x, layout, 4, 2)
        shifted = launches.taken()
        for shift in (0, 2):
            windowed_attention(x, x, x, layout, 4, shift)
        again = launches.taken()
    assert again == {"forward_kernel": 2}
    assert first - shifted == {"aminmax": 1, "stack": 1}
    assert [shifted[name] for name in ("window_kernel", "sort", "begins_kernel", "nonzero")] == [1, 1, 1, 1]
    assert shifted.total() <= 10


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"resolution": 8, "model_channels": 32, "num_heads": 2}
    flow = SLatFlowModel(
        **small, in_channels=4, out_channels=4, cond_channels=16, num_blocks=1, patch_size=2, io_block_channels=[16]
    )
    representation = {"rank": 2, "dim": 2}
    decoder = SLatRadianceFieldDecoder(
        **small, latent_channels=4, num_blocks=4, attn_mode="swin", window_size=4, representation_config=representation
    )
    return flow.to(DEVICE), decoder.to(DEVICE)


def test_a_sampling_run_derives_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four evaluations of a guided flow in two steps, then a decoder of shifted and unshifted windows, twice."""
    flow, decoder = models()
    layout, x = drawn([60, 25], 6), torch.randn(85, 4, device=DEVICE)
    tokens, times = Condition(torch.randn(2, 5, 16, device=DEVICE)), torch.tensor([500.0, 400.0], device=DEVICE)

    def field(x: torch.Tensor, t: torch.Tensor, cond: Condition, layout: Packed, *, s_B: Any = None) -> torch.Tensor:
        out: torch.Tensor = flow(x, t, cond, layout)
        return out

    def step(x: torch.Tensor) -> torch.Tensor:
        return x - 0.1 * Guidance.strength(3.0).of(field, x, times, tokens, layout)

    derived = ("put_kernel", "find_kernel", "code_kernel", "tiles_kernel", "window_kernel", "begins_kernel", "sort")
    with launches_of(monkeypatch, indices_only=True) as launches, torch.no_grad():
        x = step(x)
        first = launches.taken()
        x = step(x)
        second = launches.taken()
        decoder(x, layout)
        decoded = launches.taken()
        decoder(x, layout)
        again = launches.taken()
    # Convolutions at two resolutions; windows in two positions.
    assert [first[name] for name in derived] == [2, 2, 2, 2, 0, 0, 2]
    assert [decoded[name] for name in derived] == [0, 0, 0, 0, 2, 2, 2]
    for later in (second, again):
        assert not any(later[name] for name in (*derived, "aminmax", "nonzero"))
    assert second["conv_kernel"] == first["conv_kernel"] > 0
    assert again["forward_kernel"] == decoded["forward_kernel"] == 4
