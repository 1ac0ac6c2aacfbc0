"""Latents of both stages as they are stored: posterior means of the official encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.files import LATENTS, STRUCTURE, Array, ItemError, read_arrays
from fewstep_trellis.official.fits import Fits
from fewstep_trellis.official.table import Row


def structure_latent(row: Row, model: str, fits: Fits, normalisation: Normalisation | None = None) -> Tensor:
    """Float32 [C, r, r, r] of ``ss_latents/<model>/``.

    Raises:
        ItemError: a file that is missing, damaged or does not fit.
    """
    return read_grid(row.root / STRUCTURE / model / f"{row.sha256}.npz", "mean", fits, normalisation)


def read_grid(path: Path, key: str, fits: Fits, normalisation: Normalisation | None = None) -> Tensor:
    """Float32 [C, r, r, r] of a file's array ``key``.

    Raises:
        ItemError: a file that is missing, damaged or does not fit.
    """
    (array,) = read_arrays(path, **{key: (None, None, None, None)})
    if len(set(array.shape[1:])) != 1:
        raise ItemError(f"{path}: {key} has shape {list(array.shape)}; accepted: [C, r, r, r]")
    latent = _floats(path, key, array)
    fits.check(path, Fits.sizes(latent))
    return latent if normalisation is None else normalisation.apply(latent.movedim(0, -1)).movedim(-1, 0)


def structured_latent(
    row: Row, model: str, fits: Fits, normalisation: Normalisation | None = None
) -> tuple[Tensor, Tensor]:
    """``read_voxels`` of ``latents/<model>/``."""
    return read_voxels(row.root / LATENTS / model / f"{row.sha256}.npz", model, fits, normalisation)


def read_voxels(
    path: Path, encoder: str, fits: Fits, normalisation: Normalisation | None = None
) -> tuple[Tensor, Tensor]:
    """Voxels int32 [N, 3] (x, y, z) and their latents float32 [N, C] of a file, in its order.

    Args:
        encoder: whose name may say how large the grid is.

    Raises:
        ItemError: a file that is missing, damaged or does not fit, or another number of voxels than of latents.
    """
    coords, feats = read_arrays(path, coords=(None, 3), feats=(None, None))
    if len(coords) != len(feats) or coords.dtype.kind == "f":
        raise ItemError(f"{path}: {len(coords)} voxels of type {coords.dtype} for {len(feats)} latents")
    fits.check_voxels(path, coords, encoder)
    latents = _floats(path, "feats", feats)
    fits.check(path, Fits.sizes(latents))
    scaled = latents if normalisation is None else normalisation.apply(latents)
    return torch.from_numpy(coords.astype(np.int32)), scaled


def _floats(path: Path, name: str, array: Array) -> Tensor:
    if array.dtype.kind != "f":
        raise ItemError(f"{path}: {name} is of type {array.dtype}; accepted: floating point")
    with np.errstate(over="ignore"):
        found = torch.from_numpy(array.astype(np.float32))
    if not found.isfinite().all():
        raise ItemError(f"{path}: {name} holds values that are not finite numbers")
    return found
