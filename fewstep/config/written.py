"""A resolved config as a TOML file, for ``--dry-run --toml``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.config.presets import DATASET
from fewstep.config.run import Resolved
from fewstep.config.stages import BOTH
from fewstep.console import command


def as_toml(stages: Mapping[str, Resolved]) -> str:
    """Every key with its value, as ``--config`` takes them; with several stages, below the stages' names."""
    first = next(iter(stages.values()))
    words = ["fewstep", "distill", "--method", first.method.name, "--backbone", first.backbone.name]
    lines = [f"# {command(*words, *(['--stage', BOTH] if len(stages) > 1 else []), '--config', 'FILE')}"]
    for name, resolved in stages.items():
        prefix = (name,) if len(stages) > 1 else ()
        lines += _table(prefix, {DATASET: resolved.dataset.name, **resolved.tables()})
    return "\n".join(lines) + "\n"


def _table(path: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[str]:
    """Plain values first, then the tables inside, since in TOML what follows a header belongs to it."""
    if path:
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in values.items():
        if not isinstance(value, Mapping):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _table((*path, key), value)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _text(text)


def _value(value: Any) -> str:
    if value is None:
        return '"none"'  # TOML has no null; see Strict
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return _text(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)


def _text(text: str) -> str:
    """A TOML string in ASCII, so that no console or redirection changes it."""
    return re.sub(r"[^ -~]", lambda match: f"\\U{ord(match[0]):08X}", json.dumps(text, ensure_ascii=False))
