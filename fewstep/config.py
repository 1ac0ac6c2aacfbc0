"""Configs: frozen pydantic models, assembled per run, with errors that name the key and the nearest spelling.

Later wins: defaults, preset, ``--config`` file, ``KEY=VALUE``. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from fewstep.errors import FewstepError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=VALUE`` in TOML syntax to {"a": {"b": value}}; a bare word is a string.

    Raises:
        FewstepError: without an ``=`` or with a key that TOML does not take.
    """
    key, sep, value = text.partition("=")
    if not sep or not key.strip():
        raise FewstepError(f"override {text!r}: accepted is KEY=VALUE, for example train.steps=400")
    for candidate in (value, "'" + value.strip().replace("'", "") + "'"):
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise FewstepError(f"override {text!r}: {key!r} is no dotted key, for example train.steps=400")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a nested dict.

    Raises:
        FewstepError: for a missing file or a syntax error, with its line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FewstepError(f"config {str(path)!r}: {error.strerror or error}; accepted: a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FewstepError(f"config {str(path)!r} is no TOML: {error}") from None


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts merged, later wins; a table meets a table key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            out[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return out


def validate(model: type[M], values: Mapping[str, Any]) -> M:
    """An instance of ``model``; every problem in one FewstepError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise FewstepError("\n".join(_explain(model, item) for item in error.errors())) from None


def _explain(model: type[BaseModel], item: ErrorDetails) -> str:
    loc = [str(part) for part in item["loc"]]
    key = ".".join(loc)
    if item["type"] == "extra_forbidden":
        fields = sorted(_model_at(model, loc[:-1]).model_fields)
        prefix = ".".join([*loc[:-1], ""])
        hint = nearest(loc[-1], fields) or _elsewhere(model, loc[-1])
        text = f"unknown key {key!r}: accepted {'under ' + prefix[:-1] if prefix else 'at the top'} are "
        full = None if hint is None else (hint if "." in hint else prefix + hint)
        return text + ", ".join(fields) + (f"; did you mean {full!r}?" if full else "")
    return f"{key}: got {item['input']!r}; accepted: {item['msg'].removeprefix('Input should be ')}"


def _model_at(model: type[BaseModel], loc: list[str]) -> type[BaseModel]:
    for part in loc:
        found = model.model_fields.get(part)
        inner = None if found is None else _inner(found.annotation)
        if inner is None:
            return model
        model = inner
    return model


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The config class inside an annotation, optional ones included."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _elsewhere(model: type[BaseModel], name: str) -> str | None:
    """A key of this very name (or nearly) in another table: ``steps`` -> ``train.steps``."""
    keys = {row[0].rpartition(".")[2]: row[0] for row in describe(model)}
    hint = nearest(name, keys)
    return None if hint is None else keys[hint]


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Rows (key, type and bounds, default, meaning) of every key, nested ones dotted."""
    for name, info in model.model_fields.items():
        inner = _inner(info.annotation)
        if inner is not None and info.default_factory is not None:
            yield from describe(inner, f"{prefix}{name}.")
            continue
        kind = getattr(info.annotation, "__name__", "") if not getattr(info.annotation, "__args__", ()) else ""
        shown = kind or str(info.annotation).replace("typing.", "")
        bounds = ", ".join(str(rule) for rule in info.metadata)
        default = info.get_default(call_default_factory=True) if not _needs_data(info) else PydanticUndefined
        text = "required" if default is PydanticUndefined else repr(default)
        yield f"{prefix}{name}", shown + (f" ({bounds})" if bounds else ""), text, info.description or ""


def _needs_data(info: Any) -> bool:
    return bool(info.is_required())
