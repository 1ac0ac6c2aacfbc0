"""Encoders in transformers' own format: from the hub, from its cache, or from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid, need
from fewstep.texts import read_json
from fewstep_trellis.weightfiles import check_complete, tensor_file
from fewstep_trellis.weights import listing

CONFIG = "config.json"
WEIGHTS = (".safetensors", ".pth", ".pt")
_FILES = ("*.json", "*.txt", "*.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Kind:
    """A kind of encoder: what messages call it and its option, and its class in transformers.

    Args:
        what: for messages, such as "image encoder".
        option: of the command line that takes a folder.
        model: class in transformers.
        types: the ``model_type`` values of config.json that the class reads.
        ignored: beginnings of keys that a checkpoint may hold and the class does not need.
    """

    what: str
    option: str
    model: str
    types: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def is_repository(name: str) -> bool:
    """Whether ``name`` looks like owner/name on the hub, and not like a file of weights."""
    return _REPOSITORY.fullmatch(name) is not None and not name.startswith(".") and Path(name).suffix not in WEIGHTS


def quiet_hub() -> None:
    """Silence the hub's own lines about each retry: our message says once what went wrong."""
    need("huggingface_hub.utils.logging").set_verbosity_error()


def download(name: str, kind: Kind, hint: str = "") -> Path:
    """The folder of a hub repository's files; downloaded at first use, afterwards from the cache.

    Args:
        name: owner/name.
        kind: for the message.
        hint: the message's end.

    Raises:
        FewstepError: no network and not in the cache, or no such repository.
    """
    hub = need("huggingface_hub")
    quiet_hub()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # no network, no such name, no permission, no space: a class for each
        raise FewstepError(
            f"{kind.what} {name!r} could not be downloaded and is not in the cache ({reason(error)}). Without a "
            f"network, run `hf download {name} --local-dir DIR` where there is one, and give the folder: "
            f"{kind.option} DIR{hint}"
        ) from error


def check_folder(folder: Path, kind: Kind) -> None:
    """Look whether a folder in transformers' format holds such a model with complete weights, without reading them.

    Raises:
        FewstepError: as :func:`load`, as far as file headers tell.
    """
    check_type(folder, kind)
    try:
        check_complete(tensor_file(folder / "model"))
    except FewstepError as error:
        raise invalid(kind.option, str(folder), f"{CONFIG} and complete safetensors ({error})") from None


def check_file(path: Path, kind: Kind) -> None:
    """Look whether a file of weights is whole, without reading them. Raises FewstepError, naming the option."""
    try:
        check_complete(path)
    except FewstepError as error:
        raise FewstepError(f"{kind.option}: {error}") from None


def check_type(folder: Path, kind: Kind) -> None:
    """Raise FewstepError, naming the option, for a folder without config.json, or with one of another kind of model."""
    found = model_type(folder, kind)
    if found not in kind.types:
        raise invalid(kind.option, str(folder), f"a model of type {' or '.join(kind.types)}; this one is {found!r}")


def load(folder: Path, kind: Kind) -> Any:
    """The model of a folder in transformers' format, in float32 and eval mode.

    Raises:
        FewstepError: no such folder, another kind of model, or weights that do not fit their config; names the option.
    """
    check_type(folder, kind)
    with quiet():
        try:
            model, report = transformers(kind.model).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, with the missing keys
            )
        except Exception as error:  # transformers raises a dozen kinds, from each of the libraries that it reads with
            raise invalid(kind.option, str(folder), f"{CONFIG} and complete safetensors ({reason(error)})") from error
    check(report, kind, str(folder))
    return model.eval().requires_grad_(False)


def build(kind: Kind, config: dict[str, Any], state: dict[str, Tensor], source: str) -> Any:
    """A model of these arguments and tensors, named as in transformers' files, in float32 and eval mode.

    Raises:
        FewstepError: keys are missing, unknown or wrongly shaped; ``source`` says where they come from.
    """
    with quiet():
        model, report = transformers(kind.model).from_pretrained(
            None,
            config=transformers(kind.model.removesuffix("Model") + "Config")(**config),
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check(report, kind, source)
    return model.eval().requires_grad_(False)


def model_type(folder: Path, kind: Kind) -> str | None:
    """What ``config.json`` says the model is. Raises FewstepError where there is none to read."""
    try:
        config = read_json(folder / CONFIG)
    except FewstepError as error:
        raise invalid(kind.option, str(folder), f"a folder with {CONFIG} and model.safetensors ({error})") from error
    return config.get("model_type") if isinstance(config, dict) else None


def check(report: dict[str, Any], kind: Kind, source: str) -> None:
    """Raise one FewstepError that lists the keys that were missing, unknown or wrongly shaped."""
    extra = [key for key in report["unexpected_keys"] if not key.startswith(kind.ignored)]
    shapes = [f"{key} {list(got)} instead of {list(own)}" for key, got, own in report["mismatched_keys"]]
    if found := listing(sorted(report["missing_keys"]), sorted(extra), sorted(shapes)) + report["error_msgs"]:
        raise FewstepError(f"{source} does not fit {kind.model}: {'; '.join(found)}")


def transformers(name: str) -> Any:
    """A class of transformers, imported when it is first needed: the import takes seconds."""
    return getattr(need("transformers"), name)


def reason(error: Exception) -> str:
    """The first line of an error's text, with its class where the text alone says little."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own load report and progress bars: our messages say what is wrong."""
    log = need("transformers.utils.logging")
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
