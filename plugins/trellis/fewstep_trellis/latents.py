"""Latents of a prepared set's training objects: encoded once, on the run's device, and kept in the user's cache.

The cache holds one folder per set and encoder, with a file for every ``PART`` samples (``fewstep.core.parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from torch import Tensor, nn

from fewstep.core.dataset import Progress, silent
from fewstep.core.layout import Packed
from fewstep.core.parts import cached, fingerprint, kept
from fewstep.files import cache_folder
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder

PART = 32  # samples per file: an interruption loses at most these
CHUNK = 8  # samples per call: with more, the activations no longer fit a CPU's cache

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
    """``make`` of each ``PART`` samples in turn, read from the cache's folder ``name`` where it has them."""
    folder = cache_folder() / name
    parts = cached(folder, samples, PART, lambda part: {"latents": make(part)}, progress, "encoding latents")
    say(f"latents of {len(samples)} training samples: {kept(folder)}")
    return [part["latents"] for part in parts]


def _key(data: PreparedSet, encoder: nn.Module, mirror: bool) -> str:
    """A digest of all that the cached files depend on: the objects, which of them train, the weights, the parts."""
    arrays = [data.arrays["occupancy"], data.arrays["split"]]
    if isinstance(encoder, SLatEncoder):
        arrays += data.surface_codes
    tensors = [torch.from_numpy(array) for array in arrays]
    return fingerprint(f"{mirror} {PART}", [*tensors, *encoder.state_dict().values()])
