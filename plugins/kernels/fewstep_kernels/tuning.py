"""Autotuning: the tile of a launch is measured once for each kind of call and GPU, and cached on disk.

At most CANDIDATES tiles are tried, a few times each. With FEWSTEP_AUTOTUNE=0, and under the interpreter, the first tile
is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from fewstep.errors import invalid
from fewstep_kernels.cache import Cache
from fewstep_kernels.support import interpreted

ENV = "FEWSTEP_AUTOTUNE"
CANDIDATES = 6
WARM, ROUNDS = 2, 5


@dataclass(frozen=True)
class Tile:
    """Block sizes and launch options of one configuration of a kernel.

    Args:
        sizes: constexpr arguments by name, for example ``{"BLOCK_M": 128}``.
        warps: ``num_warps``.
        stages: ``num_stages``.
    """

    sizes: dict[str, int] = field(hash=False)
    warps: int = 4
    stages: int = 2

    @cached_property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch."""
        return {**self.sizes, "num_warps": self.warps, "num_stages": self.stages}

    @property
    def name(self) -> str:
        """As in the table of compiled tiles: ``128-64-w4-s3``."""
        return "-".join([*map(str, self.sizes.values()), f"w{self.warps}", f"s{self.stages}"])


def choose(kernel: str, key: tuple[Hashable, ...], tiles: Sequence[Tile], run: Callable[[Tile], None]) -> Tile:
    """The tile to launch with: the fastest measured for this key, or the first one where tiles are not measured.

    Args:
        kernel: name in the cache.
        key: what the choice may depend on (type, widths, a bucket of sizes); never exact lengths.
        tiles: candidates, the default first.
        run: launches the kernel once with a tile, on outputs that may be overwritten.

    Raises:
        FewstepError: for a FEWSTEP_AUTOTUNE other than 0 or 1.
    """
    if len(tiles) == 1 or not measuring():
        return tiles[0]
    cache, name = _cache(torch.cuda.current_device()), "/".join([kernel, *map(str, key)])
    known = {tile.name: tile for tile in tiles[:CANDIDATES]}
    best = cache.get(name)
    if best not in known:
        if _capturing():
            return tiles[0]
        best = fastest(known, run)
        cache.put(name, best)
    return known[best]


CHOSEN: dict[tuple[Hashable, ...], Tile] = {}


def chosen(key: tuple[Hashable, ...], tiles: Sequence[Tile], run: Callable[[Tile], None]) -> Tile:
    """:func:`choose`, memoised by key = (kernel, device, what the choice may depend on ...).

    Launches that must make few Python calls look into ``CHOSEN`` themselves.
    """
    if key not in CHOSEN:
        found = choose(str(key[0]), key[2:], tiles, run)
        if _capturing():
            return found
        CHOSEN[key] = found
    return CHOSEN[key]


def measuring() -> bool:
    """Whether tiles are measured: on a GPU, unless FEWSTEP_AUTOTUNE is 0."""
    asked = os.environ.get(ENV, "1")
    if asked not in ("0", "1"):
        raise invalid(f"environment variable {ENV}", asked, "0 or 1")
    return asked == "1" and not interpreted() and torch.cuda.is_available()


def _capturing() -> bool:
    """Whether a CUDA graph is being captured: launches cannot be timed then, and the tile used is not remembered."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=16)
def _cache(index: int) -> Cache:
    import triton

    from fewstep import __version__

    return Cache(torch.cuda.get_device_name(index), triton.__version__, torch.__version__, __version__)


def fastest(tiles: dict[str, Tile], run: Callable[[Tile], None]) -> str:
    """The name of the tile with the smallest median time, among those that compile and launch.

    If none does, the first tile: the launch proper then raises its error.
    """
    times: dict[str, float] = {}
    for name, tile in tiles.items():
        try:
            times[name] = milliseconds(lambda tile=tile: run(tile))  # type: ignore[misc]
        except Exception:
            continue
    return min(times, key=lambda name: times[name]) if times else next(iter(tiles))


def milliseconds(launch: Callable[[], None]) -> float:
    """The median time of a launch on the current stream, after a warm-up."""
    for _ in range(WARM):
        launch()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(ROUNDS)]
    for begin, end in marks:
        begin.record()
        launch()
        end.record()
    torch.cuda.synchronize()
    return float(sorted(begin.elapsed_time(end) for begin, end in marks)[ROUNDS // 2])
