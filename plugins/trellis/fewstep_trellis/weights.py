"""Tensors in files: reading them without pickle, removing wrappers' prefixes, fitting them to a module."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.errors import FewstepError, invalid

State = dict[str, Tensor]

# What DistributedDataParallel, torch.compile, AveragedModel and common EMA wrappers put before every key.
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "ema.", "averaged_model.", "model.", "student.", "denoiser.")
_CONTAINERS = ("state_dict", "model", "ema")
_COUNTERS = ("n_averaged",)


def check_file(path: Path) -> None:
    """Raise FewstepError unless ``path`` is a file with something in it."""
    if not path.is_file():
        raise invalid("checkpoint", str(path), "a file that exists; there is none here")
    if path.stat().st_size == 0:
        raise invalid("checkpoint", str(path), "a file with content; this one is empty (0 bytes)")


def _read_pt(path: Path) -> Any:
    found = torch.load(path, map_location="cpu", weights_only=True)
    for name in _CONTAINERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            return found[name]
    return found


def read_tensors(path: Path) -> State:
    """The tensors of a ``.safetensors`` file, or of a ``.pt`` or ``.pth`` file that holds tensors only.

    Raises:
        FewstepError: the file is missing, empty, truncated, or of another format.
    """
    check_file(path)
    pickled = path.suffix in (".pt", ".pth")
    kind = f"a {path.suffix} file of plain tensors" if pickled else "a complete safetensors file"
    try:
        state = _read_pt(path) if pickled else load_file(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise invalid("checkpoint", str(path), f"{kind}; reading it failed ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise invalid("checkpoint", str(path), f"{kind}; this one holds other objects")
    return state


def strip_prefixes(state: Mapping[str, Tensor], wanted: Iterable[str], source: str) -> State:
    """Remove wrappers' prefixes that every key has and no wanted key has; a warning names them.

    Args:
        state: tensors by key.
        wanted: the keys of the module.
        source: where the tensors come from, for the warning.
    """
    tops = {key.split(".")[0] + "." for key in wanted}
    left = {k: v for k, v in state.items() if k not in _COUNTERS}
    gone = ""
    while prefix := next((p for p in PREFIXES if p not in tops and left and all(k.startswith(p) for k in left)), ""):
        left = {k.removeprefix(prefix): v for k, v in left.items()}
        gone += prefix
    if gone:
        warnings.warn(f"{source}: removed the prefix {gone!r} from all {len(left)} keys", stacklevel=3)
    return left


def _some(items: Iterable[str], limit: int = 8) -> str:
    names = list(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What of ``state`` does not fit ``own``, in words: keys missing, not known, of another shape."""
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    shapes = [
        f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    return listing(missing, extra, shapes)


def listing(missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> list[str]:
    """The keys that do not fit, as clauses of a message; none for keys that all do."""
    found = {"missing": missing, "not known": extra, "wrong shape": shapes}
    return [f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names]


def fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put tensors into a module, cast to the types of its own.

    Args:
        model: may lie on the meta device; afterwards it lies where the tensors do.
        state: tensors by key.
        source: where the tensors come from, for the messages.

    Raises:
        FewstepError: keys are missing, not known or wrongly shaped; all of them in one message.
    """
    own = model.state_dict()
    left = strip_prefixes(state, own, source)
    if found := misfits(own, left):
        raise FewstepError(f"{source} does not fit {type(model).__name__}: {'; '.join(found)}")
    # Copies: tensors read from a file may be a view of it, and the file may change later.
    model.load_state_dict({k: v.to(own[k].dtype, copy=True) for k, v in left.items()}, assign=True)
