"""What is to be generated: a job for each picture, text, or object of several pictures. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import FewstepError, invalid

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NOT_THERE = "; there is nothing of this name (texts need a text pipeline: --teacher microsoft/TRELLIS-text-large)"


@dataclass(frozen=True)
class Job:
    """One object to make: of ``pictures``, or of ``text``. ``name`` is what its files are called."""

    name: str
    pictures: tuple[Path, ...] = ()
    text: str = ""

    @property
    def label(self) -> str:
        """For messages."""
        return self.text or ", ".join(map(str, self.pictures))


def picture_jobs(inputs: Sequence[str], *, together: bool) -> list[Job]:
    """The jobs of an image pipeline.

    Args:
        inputs: picture files, and folders of them.
        together: all of them show one object.

    Raises:
        FewstepError: no pictures, a path that is none, or two objects of one name.
    """
    paths = [path for text in inputs for path in _pictures(Path(text))]
    if not paths:
        raise FewstepError("no input; accepted: a picture, several, or a folder of pictures")
    if together:
        return [Job(paths[0].stem, tuple(paths))]
    jobs: dict[str, Job] = {}
    for path in paths:
        if path.stem in jobs:
            first = jobs[path.stem].label
            raise FewstepError(f"two pictures are called {path.stem!r} ({first}, {path}); accepted: one of each name")
        jobs[path.stem] = Job(path.stem, (path,))
    return list(jobs.values())


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise invalid("input", str(path), f"a picture or a folder of pictures{NOT_THERE}")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    if not found:
        raise invalid("input", str(path), f"a folder with pictures in it ({', '.join(PICTURES)})")
    return found


def text_jobs(texts: Sequence[str]) -> list[Job]:
    """The jobs of a text pipeline.

    Raises:
        FewstepError: no text, an empty one, or a picture.
    """
    if not texts:
        raise FewstepError("no input; accepted: a text, for example --text 'a wooden chair'")
    for text in texts:
        if not text.strip():
            raise invalid("--text", text, "a text with something in it")
        if Path(text).suffix.lower() in PICTURES and Path(text).is_file():
            raise invalid("input", text, "a text: this pipeline is for texts, an image pipeline takes pictures")
    return [Job(_slug(text), text=text) for text in dict.fromkeys(texts)]


def _slug(text: str) -> str:
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")
    return words[:48].rstrip("-") or "text"
