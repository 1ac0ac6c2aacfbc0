"""Removing what is behind an object. Optional: the package ``rembg`` brings its own network."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from PIL import Image

from fewstep.errors import FewstepError, install

NETWORK, LONGEST = "u2net", 1024


def remove_background(image: Image.Image, name: str = "the picture") -> Image.Image:
    """The picture as RGBA with its background transparent, at most 1024 pixels long; as upstream: U2-Net in rembg.

    Raises:
        FewstepError: rembg is not installed, or its network cannot be loaded.
    """
    remove, session = _rembg(name)
    cut: Image.Image = remove(_shrunk(image.convert("RGB")), session=session)
    return cut.convert("RGBA")


def _shrunk(image: Image.Image) -> Image.Image:
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, int(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _rembg(name: str) -> tuple[Any, Any]:
    try:
        return importlib.import_module("rembg").remove, _session()
    except (ImportError, SystemExit) as error:  # rembg leaves the program where its own onnxruntime is missing
        raise FewstepError(
            f"{name} has no transparency, and removing a background needs rembg, which is not installed: "
            f"{install('background')}, or give an RGBA picture whose background is transparent"
        ) from error
    except Exception as error:  # rembg downloads its network at first use: whatever fails there is the user's to know
        raise FewstepError(
            f"{name}: rembg could not load its network {NETWORK} ({type(error).__name__}: {error}); "
            "give an RGBA picture whose background is transparent, or put the network where rembg looks for it"
        ) from error


@cache
def _session() -> Any:
    return importlib.import_module("rembg").new_session(NETWORK)
