"""One training item of either stage, read from a data root with every random draw in the published order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import Draw, caption, picture_path
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.latents import structure_latent, structured_latent
from fewstep_trellis.official.table import Row


@dataclass(frozen=True)
class Item:
    """Latents of an object ([C, r, r, r], or [N, C] at the voxels ``coords`` [N, 3]) and what it is conditioned on.

    Of a picture, once it is loaded, either ``pixels`` [3, S, S] or, where they are at hand, ``tokens`` [L, C].
    """

    latents: Tensor
    coords: Tensor | None = None
    picture: Path | None = None
    caption: str | None = None
    pixels: Tensor | None = None
    tokens: Tensor | None = None


def read_item(row: Row, config: OfficialConfig, normalisation: Normalisation | None, draw: Draw) -> Item:
    """The item of a row: its latents first, then one draw for its view or caption.

    The picture is not opened here: its tokens may be at hand.

    Raises:
        ItemError: for a missing or damaged file, naming it.
    """
    coords = None
    if isinstance(config, LatentsConfig):
        coords, latents = structured_latent(row, config.latent_model, normalisation)
    else:
        latents = structure_latent(row, config.latent_model, normalisation)
    if config.condition == "text":
        return Item(latents, coords, caption=caption(row, draw))
    return Item(latents, coords, picture=picture_path(row, draw))


def check_voxels(row: Row, item: Item, side: int | None, most: int | None) -> None:
    """Hold an object's voxels against the grid that the network was made for, and their number against the table's.

    Raises:
        ItemError: a voxel outside ``side`` cells, or more than ``most``, by which a batch was packed.
    """
    if item.coords is None:
        return
    if side is not None and int(item.coords.max()) >= side:
        raise ItemError(f"{row.root}, {row.sha256}: a voxel at {int(item.coords.max())}; the teacher has {side} cells")
    if most is not None and len(item.coords) > most:
        raise ItemError(f"{row.root}, {row.sha256}: {len(item.coords)} voxels; the table says {most}")


def packed(coords: Sequence[Tensor]) -> Packed:
    """The layout of objects with these voxels."""
    return Packed.of_lengths([len(each) for each in coords], torch.cat(list(coords)))
