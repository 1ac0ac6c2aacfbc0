"""From furniture catalogues to a prepared set: voxels, split by cluster, and picture tokens, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fewstep.console import Console, say
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, new_folder
from fewstep_shapes3d.data import clusters, setfiles
from fewstep_shapes3d.data.attributes import write_codes
from fewstep_shapes3d.data.jobs import Made, Progress, make_all
from fewstep_shapes3d.data.sh3f import Skipped, find_catalogues, read_catalogues
from fewstep_shapes3d.data.voxels import unpack
from fewstep_shapes3d.measures import features


def prepare_sweethome3d(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    resolution: int = 32,
    views: int = 2,
    channels: int = 48,
    seed: int = 0,
    test_clusters: int = 96,
    limit: int | None = None,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reads ``.sh3f`` catalogues and writes a prepared set to ``out``, whole or not at all.

    Args:
        source: a folder that holds ``.sh3f`` files at any depth, or one or several files.
        out: the folder to make. It must not exist.
        resolution: voxels on a side, a multiple of 2.
        views: pictures of each object.
        channels: width of the picture tokens.
        seed: of the cameras and the split.
        test_clusters: clusters kept for testing; with ``limit`` at most a quarter of the clusters.
        limit: read this many models only, spread over the catalogues: for trying out.
        workers: processes.
        device: where the pictures are encoded.
        progress: called as ``progress(done, total, name)`` after each model, then anew as its pictures are encoded.

    Returns:
        The manifest, as written to ``manifest.json``.

    Raises:
        FewstepError: no catalogue, nothing readable in them, ``out`` exists, or a value is out of range. Models that
            cannot be used are no error: each is printed on one line and listed in the manifest.
    """
    target = Path(out)
    _check(target, resolution, views, limit)
    place = pick_device(device, "--device")
    files = find_catalogues(source)
    entries, skipped = read_catalogues(files)
    if limit is not None and limit < len(entries):
        entries = [entries[at] for at in np.linspace(0, len(entries) - 1, limit).round().astype(int)]
    made: list[Made] = []
    tell = progress or (lambda done, total, name: None)
    for result in make_all(entries, resolution, views, seed, workers, tell):
        (made if isinstance(result, Made) else skipped).append(result)  # type: ignore[arg-type]
    console = Console()
    for bad in skipped:
        say(console, f"skipped {bad.what}: {bad.reason}")
    if len(made) < 2:
        raise FewstepError(f"{len(made)} usable models in {', '.join(path.name for path in files)}: nothing to split")
    grids = unpack(np.stack([item.bits for item in made]), resolution)
    labels = clusters.cluster(clusters.coarsen(grids))
    if limit is not None:
        test_clusters = min(test_clusters, max(1, int(labels.max() + 1) // 4))
    codes = clusters.split(labels, grids.sum((1, 2, 3)), test_clusters, resolution, seed)
    arrays = {"occupancy": np.stack([item.bits for item in made]), "split": codes} | _tokens(
        made, codes, channels, place, tell
    )
    settings = {"resolution": resolution, "views": views, "channels": channels, "seed": seed}
    return write_set(target, files, made, skipped, labels, codes, arrays, settings)


def _check(target: Path, resolution: int, views: int, limit: int | None) -> None:
    for package in ("open3d", "trimesh"):
        need(package)  # once, here: later it would be a reason to skip each object
    if target.exists():
        raise invalid("data.out", str(target), "a folder that does not exist yet; nothing is overwritten")
    check_place("data.out", target)
    if resolution < 2 or resolution % 2:
        raise invalid("resolution", resolution, "an even number of voxels")
    if views < 1:
        raise invalid("views", views, "1 or more")
    if limit is not None and limit < 2:
        raise invalid("limit", limit, "2 or more models")


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


def encode_views(
    encoder: features.ImageEncoder, pictures: npt.NDArray[np.uint8], flips: tuple[bool, ...] = (False, True)
) -> torch.Tensor:
    """Raw tokens [views,flips,49,1280] in half precision of RGBA pictures [views,H,W,4]."""
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
    settings: dict[str, int],
) -> dict[str, Any]:
    """Writes a set, whole or not at all; returns its manifest, which begins with the ``settings``."""
    with new_folder(target) as part:
        manifest = setfiles.manifest(files, skipped, labels, codes, settings)
        setfiles.write_table(part / setfiles.TABLE, made, labels, codes)
        setfiles.write_pictures(part / setfiles.PICTURES, [made[at] for at in np.flatnonzero(codes >= clusters.TEST)])
        setfiles.write_credits(part / setfiles.CREDITS, made, files)
        np.savez_compressed(part / setfiles.ARRAYS, **arrays)  # type: ignore[arg-type]
        write_codes(part / setfiles.SURFACE, [item.surface for item in made])
        setfiles.write_manifest(part, manifest)
    return manifest
