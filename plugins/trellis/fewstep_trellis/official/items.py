"""One training item of either stage, read from a data root with every random draw in the published order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import Draw, caption, picture_paths
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.fits import ANY, Fits
from fewstep_trellis.official.latents import structure_latent, structured_latent
from fewstep_trellis.official.table import Row


@dataclass(frozen=True)
class Item:
    """Latents of an object ([C, r, r, r], or [N, C] at the voxels ``coords`` [N, 3]) and what it is conditioned on.

    Once its picture is loaded, it has either ``pixels`` [3, S, S] or, if they are cached, ``tokens`` [L, C].
    """

    latents: Tensor
    coords: Tensor | None = None
    picture: Path | None = None
    caption: str | None = None
    pixels: Tensor | None = None
    tokens: Tensor | None = None


def read_item(
    row: Row, config: OfficialConfig, normalisation: Normalisation | None, draw: Draw, fits: Fits = ANY
) -> Item:
    """The item of a row, read and checked: its latents first, then one draw for its view or caption. Training and
    ``fewstep data inspect`` both read objects by this function and ``prepared_picture``.

    The picture is not opened here: its tokens may be cached.

    Raises:
        ItemError: for a file that is missing, damaged or does not fit, naming it.
    """
    coords = None
    if isinstance(config, LatentsConfig):
        coords, latents = structured_latent(row, config.latent_model, fits, normalisation)
        if config.voxel_budget is not None and len(coords) > (most := int(row.number("num_voxels") or 0)):
            raise ItemError(f"{row.root}, {row.sha256}: {len(coords)} voxels; the table says {most}")
    else:
        latents = structure_latent(row, config.latent_model, fits, normalisation)
    if config.condition == "text":
        return Item(latents, coords, caption=caption(row, draw))
    pictures = picture_paths(row)
    return Item(latents, coords, picture=pictures[draw(len(pictures))])


def packed(coords: Sequence[Tensor]) -> Packed:
    """The layout of objects with these voxels."""
    return Packed.of_lengths([len(each) for each in coords], torch.cat(list(coords)))
