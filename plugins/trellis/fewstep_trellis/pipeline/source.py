"""Where the files of a pipeline are: a folder, or a repository on the hub; only what is needed is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewstep.engine.hub import REPOSITORY
from fewstep.errors import FewstepError
from fewstep_trellis.normalisation import PIPELINE
from fewstep_trellis.weightfiles import LFS


class Absent(Exception):
    """The place can be read, but holds no such file."""


class Unreachable(FewstepError):
    """The place cannot be asked: no connection, no permission, no such repository."""


class Source(Protocol):
    """A place with files in it."""

    @property
    def name(self) -> str: ...
    def fetch(self, file: str) -> Path:
        """The local path of a file. Raises Absent, or Unreachable."""


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, for example a clone of a hub repository."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def fetch(self, file: str) -> Path:
        found = self.path / file
        if not found.is_file():
            raise Absent(file)
        with found.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise FewstepError(f"{found}: a git-lfs pointer, not the file itself; run `git lfs pull` in its clone")
        return found


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hugging Face hub; files come from its cache where they are there already."""

    name: str

    def fetch(self, file: str) -> Path:
        from huggingface_hub import errors, hf_hub_download

        from fewstep_trellis.conditioning.hub import quiet_hub

        quiet_hub()
        try:
            return Path(hf_hub_download(self.name, file))
        except errors.LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, but about the connection
            raise self._failed(file, f"not in the cache, and the hub cannot be reached: {_first(error)}") from None
        except errors.EntryNotFoundError:
            raise Absent(file) from None
        except errors.GatedRepoError:
            raise self._failed(file, "the repository is gated: accept its terms and log in (`hf auth login`)") from None
        except errors.RepositoryNotFoundError:
            raise self._failed(file, "there is no such repository, or it is private") from None
        except (OSError, ValueError) as error:  # the network, the disk, a name the hub does not take
            raise self._failed(file, _first(error)) from None

    def _failed(self, file: str, reason: str) -> Unreachable:
        return Unreachable(
            f"{self.name}/{file}: cannot be fetched from the hub: {reason}; accepted: a name of the hub with a "
            f"connection to it, or a folder (`git clone https://huggingface.co/{self.name}`)"
        )


def open_source(
    name: str | Path, key: str = "--teacher", file: str = PIPELINE, example: str = "microsoft/TRELLIS-image-large"
) -> Source:
    """A folder with ``file``, or the hub repository of that name.

    Args:
        key: what the user called it, for messages.
        example: a name of the hub that has such a file, likewise.

    Raises:
        FewstepError: for what is neither.
    """
    path = Path(name)
    if os.path.isdir(path):  # unlike the methods of Path, for any text
        if not (path / file).is_file():
            raise FewstepError(f"{key}: got {str(name)!r}, a folder without {file}; accepted: one like {example}")
        return Folder(path)
    if not os.path.exists(path) and REPOSITORY.fullmatch(str(name)):
        return Repository(str(name))
    raise FewstepError(
        f"{key}: got {str(name)!r}; accepted: a folder with {file}, or a name of the hub such as {example}"
    )


def checkpoint(source: Source, value: str, *, weights: bool = True) -> Path:
    """The stem of a json + safetensors pair, both files on this machine; without ``weights`` the json file alone.

    As in the reference, ``value`` is looked up in the pipeline's own place first, then as ``owner/repo/path`` on the
    hub. A clone beside the pipeline's folder, under the repository's name, stands in for the hub.

    Raises:
        FewstepError: in neither place, naming both; or the hub cannot be reached.
    """
    tried, failure = [], None
    for place, stem in places(source, value):
        try:
            config = place.fetch(f"{stem}.json")
            if weights:
                place.fetch(f"{stem}.safetensors")
            return config.with_name(config.name.removesuffix(".json"))
        except Absent as absent:
            tried.append(f"{place.name}/{absent}")
        except Unreachable as error:  # offline, the cache of the next place may hold it
            failure = error
    text = f"{source.name}: model {value!r} is missing; looked for {' and '.join(tried)}"
    raise failure or FewstepError(text)


def places(source: Source, value: str) -> Iterator[tuple[Source, str]]:
    """Where a model may be, in order: (place, path in it)."""
    yield source, value
    owner, _, rest = value.partition("/")
    repository, _, stem = rest.partition("/")
    if not stem or not REPOSITORY.fullmatch(f"{owner}/{repository}"):
        return
    beside = source.path.resolve().parent / repository if isinstance(source, Folder) else None
    if beside is not None and (beside / f"{stem}.json").is_file():
        yield Folder(beside), stem
        return
    yield Repository(f"{owner}/{repository}"), stem


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
