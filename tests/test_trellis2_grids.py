"""Which cells the stages of TRELLIS.2 work on, against sets and loops."""

from __future__ import annotations

import pytest
import torch
from fewstep_trellis2.pipeline.grids import finer_cells, occupied_cells

from fewstep.errors import FewstepError


@pytest.mark.parametrize("side", [8, 4, 2])
def test_occupied_cells(side: int) -> None:
    logits = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) - 2
    logits[0, 0, 1, 2, 3] = 0.0  # not occupied: only what is above 0 is
    step = 8 // side
    wanted = {(b, x // step, y // step, z // step) for b, _, x, y, z in (logits > 0).nonzero().tolist()}
    assert occupied_cells(logits, side).tolist() == [list(cell) for cell in sorted(wanted)]


def test_a_side_that_does_not_divide() -> None:
    with pytest.raises(FewstepError, match="side of the structure grid: got 3; accepted: a divisor of 8"):
        occupied_cells(torch.zeros(1, 1, 8, 8, 8), 3)


def plain_cells(coords: torch.Tensor, resolution: int) -> list[list[int]]:
    side = resolution // 16
    cells = {(b, *((2 * c + 1) * side // 1024 for c in cell)) for b, *cell in coords.tolist()}
    return [list(cell) for cell in sorted(cells)]


@pytest.mark.parametrize(
    ("asked", "limit", "used"), [(1024, 10**6, 1024), (1536, 10**6, 1536), (1024, 1, 1024), (1536, 1, 1024)]
)
def test_finer_cells(asked: int, limit: int, used: int) -> None:
    draw = torch.Generator().manual_seed(1)
    coords = torch.cat([torch.randint(2, (900, 1), generator=draw), torch.randint(512, (900, 3), generator=draw)], 1)
    cells, resolution = finer_cells(coords.int(), asked, limit)
    assert resolution == used
    assert cells.tolist() == plain_cells(coords, used)


def test_the_limit_is_fewer_than() -> None:
    line = torch.arange(512)
    coords = torch.stack([torch.zeros_like(line), line, line, line], 1).int()  # a diagonal: as many cells as the side
    for limit, used in ((97, 1536), (96, 1408), (73, 1152), (72, 1024)):
        cells, resolution = finer_cells(coords, 1536, limit)
        assert (resolution, len(cells)) == (used, used // 16)
