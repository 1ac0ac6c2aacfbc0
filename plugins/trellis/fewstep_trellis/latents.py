"""Latents of a prepared set's training objects: encoded once, on the run's device, and kept in the user's cache.

The cache holds one folder per set and encoder, with a file for every ``PART`` samples. A file is written as soon as
its samples are encoded, so an interrupted encode goes on where it stopped. Two processes that encode at once write the
same files, each in one move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fewstep.core.dataset import Progress, silent
from fewstep.core.layout import Packed
from fewstep.files import Unwritable, cache_folder, write_bytes
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder

PART = 32  # samples of one file: an interruption repeats at most these
CHUNK = 8  # samples of one call: with more, the activations no longer fit a CPU's cache

Samples = Sequence[tuple[int, bool]]  # an object's index, and whether it is mirrored
Surface = tuple[Tensor, Tensor]  # voxels [T, 3] and their features [T, F]
Say = Callable[[str], None]


def unsaid(line: str) -> None:
    """The ``Say`` that tells nobody."""


@torch.no_grad()
def encode(encoder: SparseStructureEncoder, grids: Tensor) -> Tensor:
    """Posterior means [N, C, r, r, r] of occupancy grids [N, 1, R, R, R], on the CPU; computed where the encoder is."""
    device = next(encoder.parameters()).device
    # Without TF32 a GPU gives the same latents as a CPU, up to float32 rounding.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = torch.cat([encoder.encode(chunk.to(device))[0].cpu() for chunk in grids.split(CHUNK)])
    return found


def training_latents(
    data: PreparedSet,
    encoder: SparseStructureEncoder,
    *,
    mirror: bool,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Tensor:
    """[objects, 1 or 2, C, r, r, r]: latents of every training object and, with ``mirror``, of its mirror image."""

    def make(part: Samples) -> Tensor:
        return encode(encoder, torch.cat([data.occupancy([row], flip) for row, flip in part]))

    samples = _samples(data, mirror)
    found = torch.cat(_cached(f"latents-{_key(data, encoder, mirror)}", samples, make, progress, say))
    return found.reshape(len(data.train), -1, *found.shape[1:])


@torch.no_grad()
def encode_surfaces(encoder: SLatEncoder, surfaces: Iterable[Surface]) -> list[Tensor]:
    """Posterior means [T, C] of objects, on the CPU; computed where the encoder is, ``CHUNK`` objects packed a call."""
    device, waiting, found = next(encoder.parameters()).device, list(surfaces), list[Tensor]()
    for start in range(0, len(waiting), CHUNK):
        coords, features = zip(*waiting[start : start + CHUNK], strict=True)
        lengths = [len(each) for each in coords]
        layout = Packed.of_lengths(lengths, torch.cat(coords).int().to(device), device)
        latents: Tensor = encoder(torch.cat(features).to(device), layout, sample_posterior=False)
        found += latents.cpu().split(lengths)
    return found


def surface_latents(
    data: PreparedSet,
    encoder: SLatEncoder,
    *,
    mirror: bool,
    progress: Progress = silent,
    say: Say = unsaid,
) -> list[Tensor]:
    """Latents [T, C] of every training object, each followed by its mirror image's with ``mirror``."""

    def make(part: Samples) -> Tensor:
        return torch.cat(encode_surfaces(encoder, [data.surface(*sample) for sample in part]))

    samples = _samples(data, mirror)
    found = torch.cat(_cached(f"slat-{_key(data, encoder, mirror)}", samples, make, progress, say))
    return list(found.split([len(data.voxels(*sample)) for sample in samples]))


def _samples(data: PreparedSet, mirror: bool) -> Samples:
    return [(int(row), flip) for row in data.train for flip in ((False, True) if mirror else (False,))]


def _cached(
    name: str, samples: Samples, make: Callable[[Samples], Tensor], progress: Progress, say: Say
) -> list[Tensor]:
    """``make`` of every ``PART`` samples; what the folder ``name`` of the cache lacks is made and added."""
    found, done, folder = list[Tensor](), 0, cache_folder() / name
    for start in range(0, len(samples), PART):
        part, path = samples[start : start + PART], folder / f"{start:06d}.safetensors"
        latents = _read(path)
        if latents is None:
            progress(done, len(samples), "encoding latents")
            latents = make(part)
            _write(path, latents)
            progress(done + len(part), len(samples), "encoding latents")
        found.append(latents)
        done += len(part)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    say(f"latents of {len(samples)} training samples: {folder} ({size:.1f} MB), kept for later runs")
    return found


def _key(data: PreparedSet, encoder: nn.Module, mirror: bool) -> str:
    """A digest of all that the cached files depend on: the objects, which of them train, the weights, the parts."""
    digest = hashlib.sha256(f"{mirror} {PART}".encode())
    for name in ("occupancy", "split"):
        digest.update(data.arrays[name].tobytes())
    if isinstance(encoder, SLatEncoder):
        for codes in data.surface_codes:
            digest.update(codes.tobytes())
    for tensor in encoder.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> Tensor | None:
    """The latents of a file; None for a missing or damaged one, which is then made again."""
    try:
        return load_file(path).get("latents")
    except (OSError, SafetensorError):
        return None


def _write(path: Path, latents: Tensor) -> None:
    """Best effort: without a writable cache every run encodes anew."""
    with suppress(Unwritable):
        write_bytes(path, save({"latents": latents.contiguous()}))
