"""Config classes in words: what a key accepts, and every key of a config.

Everything is made from the annotations, so an error and ``--help-config`` say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WORDS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    NoneType: ("none", "none"),
}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
SIZES = {"min_length": "at least", "max_length": "at most"}


class Row(NamedTuple):
    """One key of a config, for ``--help-config``."""

    key: str
    accepted: str
    default: str
    meaning: str


def accepted(annotation: Any, rules: tuple[Any, ...] = ()) -> str:
    """What an annotation with its bounds accepts, in words: ``a number > 0 or none``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return accepted(args[0], (*rules, *args[1:]))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(accepted(arg, rules) for arg in args))
    if origin is Literal:
        return ", ".join(repr(arg) for arg in args)
    if origin in (list, tuple, set, frozenset):
        return _series(origin, args) + _limits(rules, SIZES)
    if origin is dict:
        return f"a table of {_plural(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table ({', '.join(sorted(annotation.model_fields))})"
    words = WORDS[annotation][0] if annotation in WORDS else str(getattr(annotation, "__name__", annotation))
    return words + (_limits(rules, BOUNDS) if annotation in (int, float) else "")


def _series(origin: Any, args: tuple[Any, ...]) -> str:
    if origin is tuple and Ellipsis not in args:
        return f"a list of {len(args)} {_plural(args[0])}"
    return f"a list of {_plural(args[0])}"


def _plural(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"tables ({', '.join(sorted(annotation.model_fields))})"
    if get_origin(annotation) is Annotated:
        return _plural(get_args(annotation)[0]) + _limits(get_args(annotation)[1:], BOUNDS)
    return WORDS.get(annotation, ("", accepted(annotation)))[1]


def _limits(rules: tuple[Any, ...], names: Mapping[str, str]) -> str:
    flat = [r for rule in rules for r in (rule.metadata if isinstance(rule, FieldInfo) else [rule])]
    found = [f"{sign} {getattr(rule, name)}" for rule in flat for name, sign in names.items() if hasattr(rule, name)]
    return " " + " and ".join(found) + (" of them" if names is SIZES else "") if found else ""


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The config class in an annotation: itself, in an optional, or in a list."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def describe(model: type[BaseModel], prefix: str = "", defaults: Any = None) -> Iterator[Row]:
    """Every key with what it accepts, its default and its meaning; nested keys dotted."""
    for name, info in model.model_fields.items():
        default = _default(info) if defaults is None else getattr(defaults, name)
        inner = inner_model(info.annotation)
        table = inner is not None and get_origin(info.annotation) not in (list, tuple, dict)
        if not table or default is None:
            text = "required" if default is PydanticUndefined else toml(default)
            yield Row(f"{prefix}{name}", accepted(info.annotation, tuple(info.metadata)), text, info.description or "")
        if inner is not None and table:
            known = default if isinstance(default, inner) else None
            yield from describe(inner, f"{prefix}{name}.", known)


def toml(value: Any) -> str:
    """A value as one would type it after ``KEY=``; None is ``none``."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        text = str(value)
        bare = text.isprintable() and re.match(r"[A-Za-z_/~]", text) and text not in ("true", "false", "inf", "nan")
        return text if bare and text == text.strip() else json.dumps(text)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(json.dumps(str(v)) if isinstance(v, str | Path) else toml(v) for v in value) + "]"
    return repr(value)


def _default(info: FieldInfo) -> Any:
    return PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
