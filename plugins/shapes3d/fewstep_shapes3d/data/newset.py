"""What making a prepared set from any kind of source shares: the place, the split, the tokens, the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fewstep.console import Console, say
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, new_folder
from fewstep_shapes3d.data import clusters, setfiles
from fewstep_shapes3d.data.attributes import write_codes
from fewstep_shapes3d.data.jobs import Made
from fewstep_shapes3d.data.sh3f import Skipped
from fewstep_shapes3d.data.voxels import unpack
from fewstep_shapes3d.measures import features

Entries = TypeVar("Entries")


def new_set(out: Path | str) -> Path:
    """The place of a new set. Raises FewstepError if it exists or cannot be written, or a package is not installed."""
    for package in ("open3d", "trimesh"):
        need(package)  # once, here: later it would be a reason to skip each object
    target = Path(out)
    if target.exists():
        raise invalid("--out", str(target), "a folder that does not exist yet; nothing is overwritten")
    check_place("--out", target)
    return target


def check_limit(limit: int | None) -> None:
    """Raise FewstepError for a limit below 2."""
    if limit is not None and limit < 2:
        raise invalid("limit", limit, "2 or more models")


def spread(entries: list[Entries], limit: int | None) -> list[Entries]:
    """``limit`` of the entries, evenly spread; all if there are fewer."""
    if limit is None or limit >= len(entries):
        return entries
    return [entries[at] for at in np.linspace(0, len(entries) - 1, limit).round().astype(int)]


def divide(
    made: Sequence[Made],
    skipped: Sequence[Skipped],
    sources: Sequence[Path],
    resolution: int,
    test_clusters: int,
    fewer: bool,
    seed: int,
) -> tuple[clusters.Ints, npt.NDArray[np.uint8]]:
    """Print what was skipped; return cluster numbers and split codes of the rest [N].

    Args:
        test_clusters, fewer, seed: see :func:`.clusters.split`.

    Raises:
        FewstepError: there are not enough objects.
    """
    console = Console()
    for bad in skipped:
        say(console, f"skipped {bad.what}: {bad.reason}")
    if len(made) < 2:
        names = ", ".join(path.name for path in sources)
        raise FewstepError(f"{names}: usable objects: {len(made)}; accepted: at least 2, for training and for testing")
    grids = unpack(np.stack([item.bits for item in made]), resolution)
    labels = clusters.cluster(clusters.coarsen(grids))
    return labels, clusters.split(labels, grids.sum((1, 2, 3)), test_clusters, resolution, seed, fewer)


def encode_views(
    encoder: features.ImageEncoder, pictures: npt.NDArray[np.uint8], flips: tuple[bool, ...] = (False, True)
) -> torch.Tensor:
    """Raw tokens [views,flips,49,1284], in half precision, of RGBA pictures [views,H,W,4]."""
    shown = [np.ascontiguousarray(p[:, ::-1]) if flip else p for p in pictures for flip in flips]
    tokens = encoder.encode([features.preprocess(Image.fromarray(p)) for p in shown])
    return tokens.half().cpu().view(len(pictures), len(flips), *tokens.shape[1:])


def write_set(
    target: Path,
    files: list[Path],
    made: list[Made],
    skipped: list[Skipped],
    labels: clusters.Ints,
    codes: npt.NDArray[np.uint8],
    arrays: dict[str, npt.NDArray[Any]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write a set, whole or not at all; return its manifest, which contains the ``settings``."""
    with new_folder(target) as part:
        manifest = setfiles.manifest(files, skipped, labels, codes, settings)
        setfiles.write_table(part / setfiles.TABLE, made, labels, codes)
        setfiles.write_pictures(part / setfiles.PICTURES, [made[at] for at in np.flatnonzero(codes >= clusters.TEST)])
        setfiles.write_credits(part / setfiles.CREDITS, made, files)
        np.savez_compressed(part / setfiles.ARRAYS, **arrays)  # type: ignore[arg-type]
        write_codes(part / setfiles.SURFACE, [item.surface for item in made])
        setfiles.write_manifest(part, manifest)
    return manifest
