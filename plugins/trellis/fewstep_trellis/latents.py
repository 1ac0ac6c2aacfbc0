"""Latents of a prepared set's training objects, encoded once and kept in the user's cache.

Encoding 1,420 grids of 32^3 takes most of a minute on two cores; a run should not wait for it twice.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep_trellis.data.prepared import PreparedSet
from fewstep_trellis.models import SparseStructureEncoder

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


def _key(data: PreparedSet, encoder: SparseStructureEncoder, mirror: bool) -> str:
    """What the latents are a function of: the grids, which of them train, and the weights."""
    digest = hashlib.sha256(str(mirror).encode())
    for name in ("occupancy", "split"):
        digest.update(data.arrays[name].tobytes())
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
