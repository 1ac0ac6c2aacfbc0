"""Latents of a prepared set's training objects, encoded once and kept in the user's cache.

Encoding 1,420 grids of 32^3 takes most of a minute on two cores, their surfaces as long; no run should wait twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder

CHUNK = 16


def cache_folder() -> Path:
    """``FEWSTEP_CACHE``, else ``fewstep`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEWSTEP_CACHE") or Path(base) / "fewstep")


@torch.no_grad()
def encode(encoder: SparseStructureEncoder, grids: Tensor) -> Tensor:
    """Posterior means [N, C, r, r, r] of occupancy grids [N, 1, R, R, R]."""
    return torch.cat([encoder.encode(chunk)[0] for chunk in grids.split(CHUNK)])


def training_latents(data: PreparedSet, encoder: SparseStructureEncoder, *, mirror: bool) -> Tensor:
    """[objects, 1 or 2, C, r, r, r]: latents of every training object and, with ``mirror``, of its mirror image."""
    path = cache_folder() / f"latents-{_key(data, encoder, mirror)}.safetensors"
    kept = _read(path)
    if kept is not None and len(kept) == len(data.train):
        return kept
    flips = (False, True) if mirror else (False,)
    found = torch.stack([encode(encoder, data.occupancy(data.train, flip)) for flip in flips], 1)
    _write(path, found)
    return found


@torch.no_grad()
def encode_surfaces(encoder: SLatEncoder, surfaces: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Posterior means [T, C] of objects given as voxels [T, 3] and features [T, F]."""
    return [
        encoder(features, Packed.of_lengths([len(coords)], coords.int()), sample_posterior=False)
        for coords, features in surfaces
    ]


def surface_latents(data: PreparedSet, encoder: SLatEncoder, *, mirror: bool) -> list[Tensor]:
    """Latents [T, C] of every training object, each followed by its mirror image's with ``mirror``."""
    path = cache_folder() / f"slat-{_key(data, encoder, mirror)}.safetensors"
    rows = [(int(row), flip) for row in data.train for flip in ((False, True) if mirror else (False,))]
    lengths = [len(data.voxels(*row)) for row in rows]
    kept = _read(path)
    if kept is None or len(kept) != sum(lengths):
        kept = torch.cat(encode_surfaces(encoder, (data.surface(*row) for row in rows)))
        _write(path, kept)
    return list(kept.split(lengths))


def _key(data: PreparedSet, encoder: nn.Module, mirror: bool) -> str:
    """What the latents are a function of: the objects, which of them train, and the weights."""
    digest = hashlib.sha256(str(mirror).encode())
    for name in ("occupancy", "split"):
        digest.update(data.arrays[name].tobytes())
    if isinstance(encoder, SLatEncoder):
        for codes in data.surface_codes:
            digest.update(codes.tobytes())
    for tensor in encoder.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> Tensor | None:
    """The cached tensor; a damaged file counts as none and is written again."""
    try:
        return load_file(path).get("latents")
    except (OSError, SafetensorError):
        return None


def _write(path: Path, latents: Tensor) -> None:
    """Best effort: without a writable cache every run encodes anew."""
    temp = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents.contiguous()}, temp)
        os.replace(temp, path)
    except OSError:
        temp.unlink(missing_ok=True)
