"""Weight files of any origin: the format is read from the content, not the suffix, and no code from a file is run."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import FewstepError, first_line, invalid, unknown
from fewstep.texts import read_json

State = dict[str, Tensor]

INDEX = (".safetensors.index.json", ".bin.index.json")  # of weights in several files
SUFFIXES = (".safetensors", INDEX[0], ".pt", ".pth", ".ckpt", ".bin", INDEX[1])
WANTED = "a complete safetensors file, or a torch file (.pt, .pth, .ckpt, .bin) with tensors by name"
LFS = b"version https://git-lfs"
ZIPPED, PICKLED = b"PK", b"\x80"  # how a file of torch begins, and one that it wrote before version 1.6
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Plain data that checkpoints hold beside tensors. torch refuses every other class.
_SCALAR = np.float64(0).__reduce__()[0]
PLAIN: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    defaultdict,
    *(pathlib.PosixPath, pathlib.PurePosixPath),
    *(np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar")),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


def split_key(path: Path) -> tuple[Path, str | None]:
    """``FILE:KEY`` as the file and the name of the weights within it; a path that exists as it stands has no key."""
    head, sep, key = str(path).rpartition(":")
    inside = sep and key and not os.path.exists(path) and os.path.isfile(tensor_file(Path(head)))
    return (Path(head), key) if inside else (path, None)


def stem_of(path: Path) -> str:
    """The path without a known suffix. Other dots are part of the name (``step.1000``)."""
    text = str(path)
    return next((text.removesuffix(s) for s in (*INDEX, ".json", *SUFFIXES) if text.endswith(s)), text)


def tensor_file(path: Path) -> Path:
    """The file of tensors that a stem, or one file of a checkpoint pair, stands for; it need not exist."""
    # os.path, unlike the methods of Path, does not raise for names that are too long.
    if os.path.isfile(path) and (path.suffix != ".json" or path.name.endswith(INDEX)):
        return path
    files = [Path(stem_of(path) + suffix) for suffix in SUFFIXES]
    named = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), SUFFIXES[0])
    return next((file for file in files if os.path.isfile(file)), Path(stem_of(path) + named))


def check_file(path: Path) -> None:
    """Raise FewstepError unless ``path`` is a file with something in it."""
    if not path.is_file():
        raise invalid("checkpoint", str(path), "a file that exists; there is none here")
    if path.stat().st_size == 0:
        raise invalid("checkpoint", str(path), "a file with content; this one is empty (0 bytes)")


def check_complete(path: Path) -> None:
    """Look at the beginning and the end of a file, or of all files of an index, without reading weights.

    Raises:
        FewstepError: one is missing, empty, cut short, or in no format that weights have. Files that torch wrote before
            version 1.6 are not looked into.
    """
    if path.name.endswith(INDEX):
        for name in sorted(set(_index(path).values())):
            check_complete(path.with_name(name))
        return
    head = _head(path)
    try:
        if head[8:9] == b"{" or not head.startswith((ZIPPED, PICKLED)):
            with safe_open(path, "pt"):
                pass
        elif head.startswith(ZIPPED):
            with zipfile.ZipFile(path):
                pass
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FewstepError:
    return invalid("checkpoint", str(path), f"{WANTED}; reading it failed ({_reason(error)})")


def read_tensors(path: Path, key: str | None = None) -> State:
    """All tensors of a file by name, those in a dict within it as ``dict/name``.

    Args:
        path: safetensors, or what ``torch.save`` wrote, under any suffix; or the index of either in several files.
        key: only what lies below this name ("ema"); "." is what lies in no dict.

    Raises:
        FewstepError: the file is missing, empty, truncated, of another format, or has nothing below ``key``.
    """
    state = _read_parts(path) if path.name.endswith(INDEX) else _read(path)
    if key is None:
        return state
    own = {k: v for k, v in state.items() if (dotted(k).startswith(f"{key}.") if key != "." else "/" not in k)}
    if not own:
        raise unknown(f"weights in {path}", key, {dotted(k).partition(".")[0] for k in state})
    return own


def dotted(name: str) -> str:
    """A tensor's name with the dicts around it as if they were modules."""
    return name.replace("/", ".")


def _head(path: Path) -> bytes:
    """The first bytes of a file. Raises FewstepError if it is missing, empty or a git-lfs pointer."""
    check_file(path)
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(LFS):
        raise FewstepError(f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` in its clone")
    return head


def _read(path: Path) -> State:
    head = _head(path)
    try:
        found = load_file(path) if head[8:9] == b"{" else _read_pickle(path)
    except FewstepError:
        raise
    except Exception as error:  # on a damaged file the two libraries raise almost anything
        raise _unreadable(path, error) from error
    state = dict(_tensors(found, ""))
    if not state:
        raise invalid("checkpoint", str(path), f"{WANTED}; this one holds other objects")
    return state


def _read_pickle(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN), path.open("rb") as file:
        warnings.simplefilter("ignore")  # about a TorchScript archive, which is refused anyway
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Why reading failed, without torch's advice to load the file unsafely."""
    text = ANSI.sub("", str(error))
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        if named is None:
            return "it is truncated, of another format, or holds more than tensors"
        return f"it holds a pickled {named[1]}, which could run code; save the state_dict() of the model alone"
    if "TorchScript" in text:
        return "it is a TorchScript program; save the state_dict() of the model alone"
    return first_line(type(error)(text)) if "weights_only" not in text else type(error).__name__


def _tensors(found: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    items = found.items() if isinstance(found, Mapping) else enumerate(found) if isinstance(found, list | tuple) else ()
    for key, value in items:
        if isinstance(value, Tensor):
            yield f"{place}{key}", value
        else:
            yield from _tensors(value, f"{place}{key}/")


def _read_parts(index: Path) -> State:
    """Weights in several files: each tensor from the file that the index names for it."""
    places = _index(index)
    parts = {name: _read(index.with_name(name)) for name in sorted(set(places.values()))}
    if missing := [key for key, name in places.items() if key not in parts[name]]:
        raise FewstepError(
            f"{index.with_name(places[missing[0]])}: lacks {missing[0]!r}, which {index.name} places there"
        )
    return {key: parts[name][key] for key, name in places.items()}


def _index(path: Path) -> dict[str, str]:
    """The file of each tensor by the index of weights in several files."""
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) and v == Path(v).name for v in places.values()):
        raise invalid("checkpoint", str(path), 'an index with a "weight_map" from names to files beside it')
    return places
