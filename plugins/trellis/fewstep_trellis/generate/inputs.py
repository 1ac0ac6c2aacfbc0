"""What is to be generated: a job for each picture, text, or object of several pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, invalid

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NOT_THERE = "; there is nothing of this name (texts need a text pipeline: --teacher microsoft/TRELLIS-text-large)"


@dataclass(frozen=True)
class Job:
    """One object to make: of ``pictures`` (paths or PIL images), or of ``text``. Its files are called ``name``."""

    name: str
    pictures: tuple[Any, ...] = ()
    text: str = ""

    @property
    def names(self) -> list[str]:
        """What to call the pictures in messages."""
        return [str(one) if isinstance(one, Path) else "the picture" for one in self.pictures]

    @property
    def label(self) -> str:
        """What to call the job in messages."""
        return self.text or ", ".join(self.names)


def jobs_of(inputs: Sequence[Any], kind: str, *, together: bool = False, texts: Sequence[str] = ()) -> list[Job]:
    """The jobs of a pipeline.

    Args:
        inputs: pictures (paths, PIL images) and folders of them, or texts.
        kind: what the pipeline is conditioned on, "image" or "text".
        together: all pictures show one object.
        texts: further inputs that can only be texts.

    Raises:
        FewstepError: nothing to make, an input of the other kind, or two objects of one name.
    """
    if kind == "text":
        if together:
            raise FewstepError("--multi-image: this pipeline is for texts; accepted: an image pipeline")
        return _text_jobs([*inputs, *texts])
    if texts:
        raise FewstepError(
            "--text: this pipeline is for pictures; accepted: a text pipeline, as microsoft/TRELLIS-text-large"
        )
    return _picture_jobs(inputs, together=together)


def _picture_jobs(inputs: Sequence[Any], *, together: bool) -> list[Job]:
    pictures = [one for value in inputs for one in _pictures(value)]
    if not pictures:
        raise FewstepError("no input; accepted: a picture, several, or a folder of pictures")
    if together:
        return [Job(_name(pictures[0], 1), tuple(pictures))]
    jobs: dict[str, Job] = {}
    for number, picture in enumerate(pictures, 1):
        name = _name(picture, number)
        if name in jobs:
            first = jobs[name].label
            raise FewstepError(f"two pictures are called {name!r} ({first}, {picture}); accepted: one of each name")
        jobs[name] = Job(name, (picture,))
    return list(jobs.values())


def _name(picture: Any, number: int) -> str:
    return picture.stem if isinstance(picture, Path) else f"picture-{number}"


def _pictures(value: Any) -> list[Any]:
    """The pictures of one input: a PIL image and a file are one, a folder is all that it holds."""
    if hasattr(value, "convert"):  # a PIL image
        return [value]
    if not isinstance(value, str | Path):
        raise invalid("input", value, "a picture (path or PIL image) or a folder of pictures")
    path = Path(value)
    if not path.is_dir():
        if not path.exists():
            raise invalid("input", str(path), f"a picture or a folder of pictures{NOT_THERE}")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    if not found:
        raise invalid("input", str(path), f"a folder with pictures in it ({', '.join(PICTURES)})")
    return found


def _text_jobs(texts: Sequence[str]) -> list[Job]:
    if not texts:
        raise FewstepError("no input; accepted: a text, for example --text 'a wooden chair'")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise invalid("--text", text, "a text with something in it")
        if Path(text).suffix.lower() in PICTURES and Path(text).is_file():
            raise invalid("input", text, "a text: this pipeline is for texts, an image pipeline takes pictures")
    return [Job(_slug(text), text=text) for text in dict.fromkeys(texts)]


def _slug(text: str) -> str:
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")
    return words[:48].rstrip("-") or "text"
