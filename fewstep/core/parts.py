"""Tensors that are slow to make and worth keeping: made part by part, each part a file in the user's cache.

A file is written as soon as its part is made, so an interrupted run goes on where it stopped. Two processes that make
the same parts at once write the same files, each atomically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.core.dataset import Progress
from fewstep.files import Unwritable, write_bytes

T = TypeVar("T")
Part = dict[str, Tensor]


def cached(
    folder: Path,
    samples: Sequence[T],
    size: int,
    make: Callable[[Sequence[T]], Part],
    progress: Progress,
    doing: str,
) -> list[Part]:
    """The parts of ``samples``, ``size`` samples each; parts that ``folder`` lacks are made and added to it.

    Args:
        folder: in the user's cache, with a digest of all that the parts depend on in its name.
        samples: what the parts are made of. Samples that are appended later leave all full parts valid.
        make: makes one part from its samples.
        doing: what is being done, for ``progress``.
    """
    parts: list[Part] = []
    for start in range(0, len(samples), size):
        chosen = samples[start : start + size]
        path = folder / f"{start:06d}{'' if len(chosen) == size else f'-{len(chosen)}'}.safetensors"
        part = _read(path)
        if part is None:
            progress(start, len(samples), doing)
            part = make(chosen)
            with suppress(Unwritable):  # without a writable cache every run makes them anew
                write_bytes(path, save({name: tensor.contiguous() for name, tensor in part.items()}))
            progress(start + len(chosen), len(samples), doing)
        parts.append(part)
    return parts


def kept(folder: Path) -> str:
    """Where the parts are and how large, in words."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return f"{folder} ({size:.1f} MB), kept for later runs"


def fingerprint(text: str, tensors: Iterable[Tensor]) -> str:
    """A digest of settings and tensors, for the name of a folder."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        exact = tensor.detach().cpu()
        digest.update((exact.float() if exact.is_floating_point() else exact).numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> Part | None:
    """The tensors of a file; None for a missing or damaged one, which is then made again."""
    try:
        part: Part = load_file(path)
    except (OSError, SafetensorError):
        return None
    return part
