"""Latents of both stages as they are stored: posterior means of the official encoders."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.files import LATENTS, STRUCTURE, ItemError, read_arrays
from fewstep_trellis.official.table import Row


def structure_latent(row: Row, model: str, normalisation: Normalisation | None = None) -> Tensor:
    """Float32 [C, r, r, r] of ``ss_latents/<model>/``.

    Raises:
        ItemError: a missing or damaged file.
    """
    path = row.root / STRUCTURE / model / f"{row.sha256}.npz"
    (mean,) = read_arrays(path, mean=(None, None, None, None))
    if len(set(mean.shape[1:])) != 1:
        raise ItemError(f"{path}: mean has shape {list(mean.shape)}; accepted: [C, r, r, r]")
    latent = torch.from_numpy(mean).float()
    return latent if normalisation is None else normalisation.apply(latent.movedim(0, -1)).movedim(-1, 0)


def structured_latent(row: Row, model: str, normalisation: Normalisation | None = None) -> tuple[Tensor, Tensor]:
    """Voxels int32 [N, 3] (x, y, z) and their latents float32 [N, C] of ``latents/<model>/``, in the file's order.

    Raises:
        ItemError: a missing or damaged file, or another number of voxels than of latents.
    """
    path = row.root / LATENTS / model / f"{row.sha256}.npz"
    coords, feats = read_arrays(path, coords=(None, 3), feats=(None, None))
    if len(coords) != len(feats) or coords.dtype.kind == "f":
        raise ItemError(f"{path}: {len(coords)} voxels of type {coords.dtype} for {len(feats)} latents")
    latents = torch.from_numpy(feats).float()
    scaled = latents if normalisation is None else normalisation.apply(latents)
    return torch.from_numpy(coords.astype("int32")), scaled
