"""From furniture catalogues or mesh files to a prepared set: voxels, split by cluster, and picture tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.engine.device import pick_device
from fewstep.errors import invalid
from fewstep.files import discard
from fewstep_shapes3d.data import SWEETHOME3D, clusters
from fewstep_shapes3d.data.jobs import Made, Progress, make_all
from fewstep_shapes3d.data.meshfiles import UpChoice, find_meshes
from fewstep_shapes3d.data.newset import check_limit, divide, encode_views, new_set, spread, write_set
from fewstep_shapes3d.data.parts import Maker, held_back
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.sh3f import find_catalogues, read_catalogues
from fewstep_shapes3d.measures import features


def prepare_sweethome3d(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    resolution: int = 32,
    views: int = 2,
    channels: int = 52,
    seed: int = 0,
    test_clusters: int = 96,
    limit: int | None = None,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read ``.sh3f`` catalogues and write a prepared set to ``out``, whole or not at all.

    Args:
        source: a folder that holds ``.sh3f`` files at any depth, or one or several files.
        out: the folder to make. It must not exist.
        resolution: voxels on a side, a multiple of 2.
        views: pictures of each object.
        channels: of a picture token besides its position; four of them are colours.
        seed: of the cameras and the split.
        test_clusters: clusters kept for testing; with ``limit`` at most a quarter of the clusters.
        limit: read only this many models, spread over the catalogues: for a trial.
        workers: processes.
        device: where the pictures are encoded.
        progress: called as ``progress(done, total, name)`` at the start and after each model, then anew as the pictures
            are encoded.

    Returns:
        The manifest, as written to ``manifest.json``.

    Raises:
        FewstepError: no catalogue, nothing readable in them, ``out`` exists, or a value is out of range. Models that
            cannot be used are no error: each is printed on one line and listed in the manifest.
    """
    target = new_set(out)
    if resolution < 2 or resolution % 2:
        raise invalid("resolution", resolution, "an even number of voxels")
    if views < 1:
        raise invalid("views", views, "1 or more")
    check_limit(limit)
    place = pick_device(device, "--device")
    files = find_catalogues(source)
    entries, skipped = read_catalogues(files)
    entries = spread(entries, limit)
    made: list[Made] = []
    tell = progress or (lambda done, total, name: None)
    for result in make_all(entries, resolution, views, seed, workers, tell):
        (made if isinstance(result, Made) else skipped).append(result)  # type: ignore[arg-type]
    labels, codes = divide(made, skipped, files, resolution, test_clusters, limit is not None, seed)
    arrays = {"occupancy": np.stack([item.bits for item in made]), "split": codes} | _tokens(
        made, codes, channels, place, tell
    )
    settings = {"resolution": resolution, "views": views, "channels": channels, "seed": seed}
    return write_set(target, files, made, skipped, labels, codes, arrays, settings)


def prepare_meshes(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    up: UpChoice = "auto",
    views: int = 2,
    seed: int = 0,
    test_clusters: int | None = None,
    limit: int | None = None,
    like: Path | str = SWEETHOME3D,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read folders of mesh files and write a prepared set to ``out``.

    Each object is scaled to the cube, so units do not matter. An interrupted call leaves ``out`` + ".parts", from which
    the same call goes on; a file that has changed since is read again.

    Args:
        source: a folder that holds mesh files at any depth, or one or several files or folders.
        out: the folder to make. It must not exist.
        up: the axis that points up in all files: "y", "z", or by default that of their format.
        views: pictures of each object.
        seed: of the cameras and the split.
        test_clusters: clusters of near-duplicates kept for testing, one object of each. Default: 96, but at most a
            quarter of the clusters.
        limit: read only this many files, evenly spread: for a trial.
        like: a prepared set from which this one takes resolution and the map from pictures to tokens, so that its
            teachers understand the pictures and both can be joined.
        workers: processes.
        device: where the pictures are encoded.
        progress: called as ``progress(done, total, name)`` at the start and after each file.

    Returns:
        The manifest, as written to ``manifest.json``.

    Raises:
        FewstepError: nothing to read, ``out`` exists, ``like`` is not a prepared set, or a value is out of range. Files
            that cannot be used are no error: each is printed on one line and listed in the manifest.
    """
    target = new_set(out)
    check_limit(limit)
    for name, value in {"views": views, "workers": workers}.items():
        if value < 1:
            raise invalid(name, value, "1 or more")
    entries = spread(find_meshes(source, up), limit)
    maker = Maker(PreparedSet.load(like, key="--like"), views, seed, workers, pick_device(device, "--device"))
    folder = target.with_name(f"{target.name}.parts")
    made, tokens, skipped = maker.all(entries, folder, progress or (lambda done, total, name: None))
    fewer = test_clusters is None or limit is not None
    sources = sorted({entry.archive for entry in entries})
    resolution = maker.like.resolution
    labels, codes = divide(made, skipped, sources, resolution, test_clusters or 96, fewer, seed)
    bits = np.stack([item.bits for item in made])
    arrays = {"occupancy": bits, "split": codes, "tokens": held_back(tokens, codes), **maker.shared}
    settings = {
        "resolution": resolution,
        "views": views,
        "channels": maker.like.manifest["channels"],
        "seed": seed,
        "up": up,
    }
    manifest = write_set(target, [], made, skipped, labels, codes, arrays, settings)
    discard(folder)
    return manifest


def _tokens(
    made: list[Made], codes: npt.NDArray[np.uint8], channels: int, device: torch.device, tell: Progress
) -> dict[str, npt.NDArray[Any]]:
    """int8 tokens [N,views,2,49,C] with their scale, and the basis, fitted on the training objects only."""
    encoder, views = features.ImageEncoder().to(device), len(made[0].pictures)
    train, test = np.flatnonzero(codes == clusters.TRAIN), np.flatnonzero(codes == clusters.TEST)
    parts = []
    for done, at in enumerate(train, 1):
        parts.append(encode_views(encoder, made[at].pictures))
        tell(done, len(train), f"picture tokens of {made[at].entry.name}")
    raw = torch.stack(parts)
    basis = features.fit_basis(raw, channels)
    tokens = torch.zeros(len(made), views, 2, features.TOKENS, channels)
    tokens[torch.from_numpy(train)] = basis(raw.float())
    for at in test:
        tokens[at, 0, 0] = basis(encode_views(encoder, made[at].pictures[:1], flips=(False,))[0, 0].float())
    scale = (tokens.abs().flatten(0, 3).max(0).values / 127).clamp(min=1e-8)
    return {
        "tokens": (tokens / scale).round().to(torch.int8).numpy(),
        "token_scale": scale.numpy(),
        "pca_mean": basis.mean.numpy().astype(np.float16),
        "pca_basis": basis.basis.numpy().astype(np.float16),
    }
