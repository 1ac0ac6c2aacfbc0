"""The autotuning cache: one JSON file of chosen tiles per GPU and set of versions."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from fewstep.errors import FewstepError
from fewstep.files import Unwritable, write_json
from fewstep.texts import read_json


def folder() -> Path:
    """FEWSTEP_CACHE, else XDG_CACHE_HOME/fewstep, else ~/.cache/fewstep."""
    if given := os.environ.get("FEWSTEP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


class Cache:
    """Maps kernel keys to tile names, for one GPU and these versions. A file that fails to read or write only warns."""

    def __init__(self, gpu: str, *versions: str) -> None:
        words = [re.sub(r"[^A-Za-z0-9.+]+", "-", word) for word in (gpu, *versions)]
        self.path = folder() / "tiles" / ("_".join(words) + ".json")
        self._known = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = read_json(self.path) if self.path.exists() else {}
        except FewstepError as error:
            warnings.warn(f"{self.path}: not read, tiles are measured anew ({error})", stacklevel=4)
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def get(self, name: str) -> str | None:
        """The value stored under this name."""
        return self._known.get(name)

    def put(self, name: str, value: str) -> None:
        """Store a value, and merge in what other processes have written meanwhile."""
        self._known = {**self._read(), **self._known, name: value}
        try:
            write_json(self.path, dict(sorted(self._known.items())))
        except Unwritable as error:
            warnings.warn(f"{self.path}: not written, tiles will be measured again ({error})", stacklevel=4)
