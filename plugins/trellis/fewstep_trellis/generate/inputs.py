"""What is to be generated: a job for each picture, text, or object of several pictures."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep_shapes3d.export.contact import is_sheet

from fewstep.errors import FewstepError, invalid

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LONGEST = 200  # bytes of a name, so that suffixes and numbers find room in the 255 that a file name may have
TEXTS = "texts need a text pipeline: --teacher microsoft/TRELLIS-text-large"


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
        return textwrap.shorten(self.text, 60, placeholder=" ...") or ", ".join(self.names)


def jobs_of(
    inputs: Sequence[Any], kind: str, *, together: bool = False, texts: Sequence[str] = (), about_texts: str = TEXTS
) -> list[Job]:
    """The jobs of a pipeline.

    Args:
        inputs: pictures (paths, PIL images) and folders of them, or texts.
        kind: what the pipeline is conditioned on, "image" or "text".
        together: all pictures show one object.
        texts: further inputs that can only be texts.
        about_texts: hint for a user who may have given a text where pictures are wanted.

    Raises:
        FewstepError: nothing to make, an input of the other kind, or two pictures of one name.
    """
    if kind == "text":
        if together:
            raise FewstepError("--multi-image: this pipeline is for texts; accepted: an image pipeline")
        return _text_jobs([*(_no_picture(value) for value in inputs), *texts])
    if texts:
        raise FewstepError(
            "--text: this pipeline is for pictures; accepted: a text pipeline, as microsoft/TRELLIS-text-large"
        )
    return _picture_jobs(inputs, about_texts, together=together)


def _picture_jobs(inputs: Sequence[Any], about_texts: str, *, together: bool) -> list[Job]:
    found = [one for value in inputs for one in _pictures(value, about_texts)]
    sheets = [one for one in found if isinstance(one, Path) and is_sheet(one)]
    pictures = [one for one in found if one not in sheets]
    if sheets:
        warnings.warn(f"{_listed(sheets)}: left out, a preview that fewstep wrote", stacklevel=2)
    if not pictures:
        raise FewstepError("no input; accepted: a picture, several, or a folder of pictures")
    names = [_name(picture, number) for number, picture in enumerate(pictures, 1)]
    if together:
        return [Job(names[0], tuple(pictures))]
    count = Counter(name.casefold() for name in names)  # a.png and A.jpg: some disks take A.glb for a.glb
    jobs: dict[str, Job] = {}
    for name, picture in zip(names, pictures, strict=True):
        if count[name.casefold()] > 1 and isinstance(picture, Path):
            name = f"{name}-{picture.suffix[1:]}"
        if first := jobs.get(name.casefold()):
            raise FewstepError(
                f"two pictures are called {picture.stem!r} ({first.label}, {picture}); accepted: one of each name"
            )
        jobs[name.casefold()] = Job(name, (picture,))
    return list(jobs.values())


def _listed(paths: Sequence[Path]) -> str:
    """The first three paths, and how many more."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def _name(picture: Any, number: int) -> str:
    return _cut(picture.stem) if isinstance(picture, Path) else f"picture-{number}"


def _cut(name: str) -> str:
    """The name, as much of it as a file name has room for."""
    while len(os.fsencode(name)) > LONGEST:
        name = name[:-1]
    return name


def _pictures(value: Any, about_texts: str) -> list[Any]:
    """The pictures of one input: a PIL image and a file are one, a folder is all that it holds."""
    if hasattr(value, "convert"):  # a PIL image
        return [value]
    if not isinstance(value, str | Path):
        raise invalid("input", value, "a picture (path or PIL image) or a folder of pictures")
    if not str(value).strip():
        raise invalid("input", str(value), "a picture or a folder of pictures (for this folder: .)")
    path = Path(value)
    if not os.path.isdir(path):  # unlike the methods of Path, os.path takes any text, however long
        if not os.path.exists(path):
            accepted = f"a picture or a folder of pictures; there is nothing of this name ({about_texts})"
            raise invalid("input", textwrap.shorten(str(path), 200), accepted)
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    if not found:
        raise invalid("input", str(path), f"a folder with pictures in it ({', '.join(PICTURES)})")
    return found


def _no_picture(text: Any) -> Any:
    """An input given without ``--text`` to a text pipeline. Raises FewstepError for a picture or a file."""
    if isinstance(text, str | Path):
        looks_so = Path(text).suffix.lower() in PICTURES and not re.search(r"\s", str(text))
        if looks_so or os.path.isfile(text):
            raise invalid(
                "input",
                str(text),
                "a text: this pipeline is for texts, an image pipeline takes pictures; --text takes any text",
            )
        if os.path.isdir(text):
            warnings.warn(f"{str(text)!r} is taken for a text; the folder of this name is not read", stacklevel=2)
    return text


def _text_jobs(texts: Sequence[str]) -> list[Job]:
    if not texts:
        raise FewstepError("no input; accepted: a text, for example --text 'a wooden chair'")
    jobs: dict[str, Job] = {}
    for text in dict.fromkeys(texts):
        if not isinstance(text, str) or not text.strip():
            raise invalid("--text", text, "a text with something in it")
        slug = name = _slug(text)
        number = 1
        while name in jobs:  # texts that begin alike, or differ only in punctuation
            number += 1
            name = f"{slug}-{number}"
        jobs[name] = Job(name, text=text)
    return list(jobs.values())


def _slug(text: str) -> str:
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-")
    return words[:48].rstrip("-") or "text"
