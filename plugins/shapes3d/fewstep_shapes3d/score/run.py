"""``fewstep score`` from Python: read both sides, compare the pairs, encode the views, summarise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.config.base import validate
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, digest, new_file
from fewstep_shapes3d.data.jobs import Progress
from fewstep_shapes3d.score.distances import failed_distances
from fewstep_shapes3d.score.encoders import Encoder, encoders
from fewstep_shapes3d.score.objects import AZIMUTHS, PIXELS, Seeing
from fewstep_shapes3d.score.pairing import Files, Pairs, content, labelled, pair
from fewstep_shapes3d.score.report import AGAIN, ObjectRow, Scores
from fewstep_shapes3d.score.settings import Settings
from fewstep_shapes3d.score.summary import WATERTIGHT, Scored, summarise
from fewstep_shapes3d.score.work import MISSING, Comparing, Count, Reading, compare, do, failure, load, read

FORMAT = 1  # of the kept files; a change makes them anew


def score(
    generated: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    true: str | Path,
    *,
    out: str | Path = "score",
    inception: str | Path | None = None,
    dinov2: str | Path | None = None,
    workers: int = 2,
    device: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> Scores:
    """Score folders of generated meshes or Gaussians against a folder of true ones, and write the report to ``out``.

    Args:
        generated: one folder or several, by label or as "LABEL=FOLDER"; all are compared with the first.
        true: the folder of true objects; files are paired by name.
        out: folder of the report. What is measured of an object is kept there, and not measured again until its file
            changes.
        inception: the TorchScript file of Inception-v3.
        dinov2: a folder with DINOv2 in the format of Hugging Face.
        workers: processes.
        device: where views are encoded.
        progress: called as ``progress(done, total, what)``.
        settings: keys of ``Settings``: align, points, thresholds, seed, resamples, up, true_up, frame, missing, views.

    Raises:
        FewstepError: a folder without meshes, no names in common, a true object that cannot be read, unknown weights,
            or a setting out of range. Generated files that cannot be read are no error: they are counted.
    """
    if isinstance(generated, (str, Path)):
        generated = [generated]
    folders = (
        {label: Path(path) for label, path in generated.items()}
        if isinstance(generated, Mapping)
        else labelled([str(path) for path in generated])
    )
    found, out = validate(Settings, settings), Path(out)
    if not folders:
        raise invalid("GENERATED", "nothing", "one folder or several")
    if workers < 1:
        raise invalid("workers", workers, "1 or more")
    for package in ("trimesh", "scipy", "plyfile"):
        need(package)
    if (out / "objects.csv").is_dir() or out.is_file():
        raise invalid("out", str(out), "a folder")
    check_place("out", out)
    weights = [None if path is None else Path(path) for path in (inception, dinov2)]
    nets = encoders(weights[0], weights[1], pick_device(device, "--device"))
    pairs = pair(folders, Path(true), found.up, found.true_up, found.missing)
    if found.views:
        need("open3d")
    sides = 1 + len(folders)  # each is read, compared (the true side with itself) and encoded
    total = len(pairs.names) * sides * (2 + (len(nets) if found.views else 0))
    return _Run(pairs, found, out, workers, Count(progress or (lambda done, total, what: None), total)).result(nets)


@dataclass(frozen=True)
class _Run:
    pairs: Pairs
    settings: Settings
    out: Path
    workers: int
    count: Count

    @property
    def seeing(self) -> Seeing:
        return Seeing(self.settings.points, self.settings.seed, self.settings.views)

    def result(self, nets: Sequence[Encoder]) -> Scores:
        truth = self._read("true objects", self.pairs.true, None)
        bad = {name: why for name, kept in truth.items() if (why := failure(kept))}
        names = [name for name in self.pairs.names if name not in bad]
        lines = [f"true object left out: {name} is {kind}: {reason}" for name, (kind, reason) in bad.items()]
        if len(names) < 2:
            raise FewstepError(f"TRUE: {len(names)} objects can be scored; accepted: 2 or more. {'; '.join(lines[:1])}")
        truth = {name: truth[name] for name in names}
        usable = replace(self.pairs, names=names, notes=[*self.pairs.notes, *lines])
        return replace(self, pairs=usable).scored(truth, nets)

    def scored(self, truth: Mapping[str, Path], nets: Sequence[Encoder]) -> Scores:
        """The scores, given that all true objects can be read."""
        names = self.pairs.names
        rows = {label: self._rows(label, files, truth) for label, files in self.pairs.generated.items()}
        rows[AGAIN] = self._compared(AGAIN, dict.fromkeys(names), truth, ("unaligned",))
        features: dict[str, dict[str, Tensor]] = {label: {} for label in rows}
        true_features: dict[str, Tensor] = {}
        for net in nets if self.settings.views else ():
            true_features[net.name] = self._features(net, "true objects", [truth[name] for name in names])
            for label in self.pairs.generated:
                features[label][net.name] = self._features(net, label, [row.kept for row in rows[label]])
        scored = {label: _scored(found, features[label]) for label, found in rows.items()}
        lines, differences = summarise(
            {label: scored[label] for label in self.pairs.generated}, true_features, len(names), self.settings.resamples
        )
        lines += summarise({AGAIN: scored[AGAIN]}, {}, len(names), self.settings.resamples)[0]
        report = Scores(self.out, self.settings, rows, dict(truth), lines, differences, self.pairs.notes)
        report.write()
        return report

    def _kept(self, *parts: object) -> Path:
        return self.out / "kept" / f"{digest([FORMAT, *map(str, parts)])[:24]}.npz"

    def _read(self, what: str, files: Files, boxes: Mapping[str, Path] | None) -> dict[str, Path]:
        """The kept file of each object that is to be scored and has a file."""
        tasks = {}
        for name in self.pairs.names:
            if name in files:
                box = None if boxes is None else boxes[name]
                kept = self._kept(content(files[name]), files[name].up, self.seeing, box and box.name)
                tasks[name] = Reading(files[name], kept, box)
        do(list(tasks.values()), partial(read, self.seeing), self.workers, self.count, f"{what} read")
        self.count(what, len(self.pairs.names) - len(tasks))
        return {name: task.kept for name, task in tasks.items()}

    def _rows(self, label: str, files: Files, truth: Mapping[str, Path]) -> list[ObjectRow]:
        kept = self._read(label, files, truth if self.settings.frame == "true" else None)
        return self._compared(
            label, {name: kept.get(name, Path()) for name in self.pairs.names}, truth, self.settings.align
        )

    def _compared(
        self, label: str, kept: Mapping[str, Path | None], truth: Mapping[str, Path], align: Sequence[str]
    ) -> list[ObjectRow]:
        """A row for each object; failed ones have the worst distances."""
        thresholds = self.settings.thresholds
        tasks, failed = {}, {}
        for name, path in kept.items():
            if path == Path():
                failed[name] = (MISSING, "no file of this name")
            elif path is not None and (why := failure(path)):
                failed[name] = why
            else:
                place = self._kept(path and path.name, truth[name].name, thresholds, align)
                tasks[name] = Comparing(name, path, truth[name], place)
        do(list(tasks.values()), partial(compare, thresholds, align), self.workers, self.count, f"{label} compared")
        self.count(label, len(failed))
        rows = []
        for name, path in kept.items():
            if name in failed:
                status, reason = failed[name]
                more = {WATERTIGHT: 0.0, "parts": math.nan, "faces": math.nan}
                rows.append(ObjectRow(label, name, None, failed_distances(thresholds, align) | more, status, reason))
                continue
            values = {key: float(value) for key, value in load(tasks[name].kept).items()}
            if path is not None:
                values |= {key: float(value) for key, value in load(path, WATERTIGHT, "parts", "faces").items()}
            rows.append(ObjectRow(label, name, path, values))
        return rows

    def _features(self, net: Encoder, label: str, kept: Sequence[Path | None]) -> Tensor:
        """[N, V, F]; failed objects are white pictures."""
        found: list[Tensor] = []
        for path in kept:
            place = self._kept("features", net.name, net.stamp, path and path.name)
            if not place.is_file():
                blank = np.full((len(AZIMUTHS), 3, PIXELS, PIXELS), 255, np.uint8)
                views = blank if path is None else load(path, "views")["views"]
                values = net.encode.of_pictures(torch.from_numpy(views)[None].float() / 255)[0]
                with new_file(place) as temp:
                    np.savez_compressed(temp, features=values.numpy())
            self.count(f"{label} encoded by {net.name}")
            found.append(torch.from_numpy(load(place, "features")["features"]))
        return torch.stack(found)


def _scored(rows: Sequence[ObjectRow], features: Mapping[str, Tensor]) -> Scored:
    names = [name for name in rows[0].values if name not in ("parts", "faces")]
    values = {name: torch.tensor([row.values[name] for row in rows], dtype=torch.float64) for name in names}
    return Scored(values, features)
