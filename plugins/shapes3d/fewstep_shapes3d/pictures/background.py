"""Removing the background of an object, by the optional package ``rembg`` and its own network."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from typing import Any

from PIL import Image

from fewstep.errors import FewstepError, first_line, install

NETWORK, LONGEST = "u2net", 1024
INSTEAD = "use the whole picture with --background keep, or give an RGBA picture whose background is transparent"


def remove_background(image: Image.Image, name: str = "the picture") -> Image.Image:
    """The picture as RGBA with its background transparent, at most 1024 pixels long; as upstream: U2-Net in rembg.

    Raises:
        FewstepError: rembg is not installed, its network cannot be loaded, or it fails on this picture.
    """
    remove, session = _rembg(name)
    try:
        cut: Image.Image = remove(shrunk(image.convert("RGB")), session=session)
        return cut.convert("RGBA")
    except Exception as error:  # whatever another's network raises on a user's picture
        raise FewstepError(
            f"{name}: rembg failed on it ({type(error).__name__}: {first_line(error)}); {INSTEAD}"
        ) from error


def can_remove() -> bool:
    """Whether rembg is installed; it is not imported for the answer."""
    try:
        return find_spec("rembg") is not None
    except ValueError:  # a module without a spec
        return True


def not_installed(name: str) -> FewstepError:
    """The error for a picture whose background cannot be removed here."""
    return FewstepError(
        f"{name} has no transparency, and removing a background needs rembg, which is not installed: "
        f"{install('background')}; {INSTEAD}"
    )


def shrunk(image: Image.Image) -> Image.Image:
    """The picture, at most 1024 pixels long (Lanczos, sides truncated)."""
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, int(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _rembg(name: str) -> tuple[Any, Any]:
    try:
        return importlib.import_module("rembg").remove, _session()
    except (ImportError, SystemExit) as error:  # rembg exits the program if its onnxruntime is missing
        raise not_installed(name) from error
    except Exception as error:  # rembg downloads its network at first use: the user must know what fails there
        raise FewstepError(
            f"{name}: rembg could not load its network {NETWORK} ({type(error).__name__}: {error}); put it where rembg "
            f"looks for it, or {INSTEAD}"
        ) from error


@cache
def _session() -> Any:
    return importlib.import_module("rembg").new_session(NETWORK)
