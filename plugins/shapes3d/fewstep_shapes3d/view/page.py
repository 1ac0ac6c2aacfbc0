"""The page of a result: the one that a bench wrote, or one with the objects of a run, a .glb file or folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fewstep.benchmark.page import PICTURE, TRUTH, write_viewer
from fewstep.console import number_of
from fewstep.core.suite import Exhibit, SheetRow
from fewstep.engine.export import holds_info
from fewstep.errors import FewstepError

GLB, PAGE, REPORT, ROWS = ".glb", "view.html", "report.html", "rows.csv"
ACCEPTED = "a .glb file, a folder of them, a folder of such folders, a bench with --report, or a run with its student"
ABREAST = 6  # models that the page shows at first, and objects of a run
AZIMUTH = 30.0  # degrees, if it is not known from which side a picture was taken
LARGEST = 48 * 2**20  # bytes of models in a page: browsers take longer over more


def page_of(place: Path, device: str = "auto") -> Path:
    """The page of a result. If there is none, it is written: ``view.html`` in a folder, NAME.view.html beside a file.

    Args:
        place: see ``ACCEPTED``.
        device: where the student of a run is sampled.

    Raises:
        FewstepError: something else, or a place that cannot be written.
    """
    if place.is_file() and place.suffix.lower() == GLB:
        return _written(place.with_suffix(f".{PAGE}"), place.name, [("", [place])])
    if not place.is_dir():
        what = "a file" if place.exists() else "nothing of this name"
        raise FewstepError(f"{place}: {what}; accepted: {ACCEPTED}")
    if (place / REPORT).is_file():
        return place / REPORT
    if (place / ROWS).is_file():
        raise FewstepError(f"{place}: a bench without a page; its command with --resume --report writes the page")
    folders = [place, *sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found = [(folder.name, _glbs(folder)) for folder in folders]
    if objects := [(name, files) for name, files in found if files]:
        return _written(place / PAGE, place.resolve().name, objects)
    if not any(map(holds_info, folders)):
        raise FewstepError(f"{place}: nothing to look at in it; accepted: {ACCEPTED}")
    return _of_run(place, device)


def _glbs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == GLB and path.is_file())


def _written(page: Path, title: str, objects: list[tuple[str, list[Path]]]) -> Path:
    """A page whose rows are the names of files; with several folders, those that any folder has."""
    kept, left_out = _within(LARGEST, [path for _, files in objects for path in files])
    models = [{path.stem: path.read_bytes() for path in files if path in kept} for _, files in objects]
    rows = list(dict.fromkeys(name for one in models for name in one if name != TRUTH))
    exhibits = [
        Exhibit(name, _picture(files[0].parent), one.get(TRUTH, b""), tuple(one.get(row, b"") for row in rows), AZIMUTH)
        for (name, files), one in zip(objects, models, strict=True)
        if one
    ]
    note = f"{number_of(left_out, 'model')} more would make the page too large." if left_out else ""
    return _page(page, title, exhibits, rows, note)


def _within(most: int, files: Iterable[Path]) -> tuple[set[Path], int]:
    """The first files that have at most ``most`` bytes together, at least one, and how many are left out."""
    kept, size, left_out = set[Path](), 0, 0
    for path in files:
        size += path.stat().st_size
        if kept and size > most:
            left_out += 1
        else:
            kept.add(path)
    return kept, left_out


def _picture(folder: Path) -> bytes:
    return (folder / PICTURE).read_bytes() if (folder / PICTURE).is_file() else b""


def _of_run(folder: Path, device: str) -> Path:
    """A page with what a run's student makes of held-out pictures, in each of its step counts."""
    from fewstep.api.loading import load

    student = load(folder, device=device)
    prompts, info = student.prompts(ABREAST), student.info
    rows = []
    for steps in student.contract.steps:
        objects = student.decode(student.sample(prompts, steps=steps), prompts)
        rows.append(SheetRow(f"{info.method}, {number_of(steps, 'step')}", objects))
    exhibits = student.suite.gallery(rows, ABREAST)
    if not exhibits:
        raise FewstepError(f"{folder}: samples of {info.backbone!r} are not meshes; see fewstep sample")
    return _page(folder / PAGE, folder.resolve().name, exhibits, [row.label for row in rows], "")


def _page(page: Path, title: str, exhibits: list[Exhibit], rows: list[str], note: str) -> Path:
    write_viewer(page, title, exhibits, [SheetRow(row, None) for row in rows], range(len(rows))[:ABREAST], note)
    return page
