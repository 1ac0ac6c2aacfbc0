"""The packages that only preparing needs: open3d and trimesh (``pip install 'fewstep[data]'``)."""

from __future__ import annotations

import importlib
from typing import Any

from fewstep.errors import FewstepError

PACKAGES = {"open3d": "open3d-cpu", "trimesh": "trimesh"}


def need(name: str) -> Any:
    """The module ``open3d`` or ``trimesh``.

    Raises:
        FewstepError: it is not installed, or lacks a system library (open3d: libusb-1.0, libGL, libgomp, libX11).
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"preparing data needs {PACKAGES[name]}: pip install 'fewstep[data]' (open3d: Python below 3.13)"
        raise FewstepError(f"{text}; {error}") from error
