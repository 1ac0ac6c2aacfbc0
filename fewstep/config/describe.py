"""Config classes in words: what a key accepts, and every key of a config.

Everything is derived from the annotations, so an error and ``--help-config`` agree.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from fewstep.errors import nearest

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
    """What an annotation and its bounds accept, in words: ``a number > 0 or none``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return accepted(args[0], (*rules, *args[1:]))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(accepted(arg, rules) for arg in args))
    if origin is Literal:
        return ", ".join(repr(arg) for arg in args)
    if origin in (list, tuple, set, frozenset):
        length = f" of {len(args)}" if origin is tuple and Ellipsis not in args else " of"
        return f"a list{length} {_plural(args[0])}{_limits(rules, SIZES)}"
    if origin is dict:
        return f"a table of {_plural(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table ({', '.join(sorted(annotation.model_fields))})"
    words = WORDS[annotation][0] if annotation in WORDS else str(getattr(annotation, "__name__", annotation))
    return words + (_limits(rules, BOUNDS) if annotation in (int, float) else "")


def _plural(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"tables ({', '.join(sorted(annotation.model_fields))})"
    if get_origin(annotation) is Annotated:
        return _plural(get_args(annotation)[0]) + _limits(get_args(annotation)[1:], BOUNDS)
    return WORDS.get(annotation, ("", accepted(annotation)))[1]


def _limits(rules: tuple[Any, ...], names: Mapping[str, str]) -> str:
    flat = [r for rule in rules for r in (rule.metadata if isinstance(rule, FieldInfo) else [rule])]
    limits = [f"{sign} {getattr(rule, name)}" for rule in flat for name, sign in names.items() if hasattr(rule, name)]
    return " " + " and ".join(limits) + (" of them" if names is SIZES else "") if limits else ""


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The config class in an annotation: the annotation itself, or inside an optional or a list."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def describe(model: type[BaseModel], prefix: str = "", defaults: Any = None) -> Iterator[Row]:
    """Every key with what it accepts, its default and its meaning; nested keys are dotted."""
    for name, info in model.model_fields.items():
        own = PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
        default = own if defaults is None else getattr(defaults, name)
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


def explain(model: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> str:
    """Every problem, one line per key however many branches of a union refused it."""
    lines: dict[str, str] = {}
    for item in error.errors():
        key, owner, info = _locate(model, item["loc"])
        if item["type"] == "extra_forbidden":
            lines.setdefault(".".join(map(str, item["loc"])), _unknown(model, owner, item))
        elif info is None or item["type"] in ("value_error", "assertion_error"):
            text = item["msg"].partition(", ")[2] or item["msg"]
            table = isinstance(item["input"], Mapping)  # then keys do not fit together, and no single value is wrong
            got = "" if table else f"got {_show(item['input'])}; accepted: "
            lines.setdefault(key, f"{key}: {got}{text}" if key else text)
        else:
            lines.setdefault(key, _refused(key, info, values, item))
    return "\n".join(lines.values())


def _refused(key: str, info: FieldInfo, values: Mapping[str, Any], item: ErrorDetails) -> str:
    if item["type"] == "missing" and not isinstance(item["loc"][-1], int):
        return f"{key}: missing; accepted: {accepted(info.annotation, tuple(info.metadata))}"
    got = _dig(values, key)
    text = f"{key}: got {_show(got)}; accepted: {accepted(info.annotation, tuple(info.metadata))}"
    if item["type"] == "finite_number":
        text += ", finite"
    hint = nearest(got, [c for c in _choices(info.annotation) if isinstance(c, str)]) if isinstance(got, str) else None
    return text + (f"; did you mean {hint!r}?" if hint else "")


def _unknown(model: type[BaseModel], owner: type[BaseModel], item: ErrorDetails) -> str:
    *table, name = (str(part) for part in item["loc"])
    prefix, fields = "".join(f"{part}." for part in table), sorted(owner.model_fields)
    same = [row.key for row in describe(model) if row.key.rpartition(".")[2] == name]
    close, keys = nearest(name, fields), {row.key.rpartition(".")[2]: row.key for row in describe(model)}
    elsewhere = nearest(name, keys, cutoff=0.75)
    hints = same or ([prefix + close] if close else [keys[elsewhere]] if elsewhere else [])
    where = f"under {prefix[:-1]}" if prefix else "at the top"
    text = f"unknown key {prefix + name!r}: accepted {where} are {', '.join(fields)}"
    return text + (f"; did you mean {' or '.join(map(repr, hints[:3]))}?" if hints else "")


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """The dotted key of a location, the class that owns it, and the field. Names of a union's branches are skipped."""
    key, owner, info, held = "", model, None, model
    for part in loc:
        if isinstance(part, str) and part in held.model_fields:
            owner, info = held, held.model_fields[part]
            key, held = f"{key}.{part}" if key else part, inner_model(info.annotation) or _Nothing
        elif isinstance(part, int) and held is not _Nothing:
            key = f"{key}.{part}"
    return key, held if held is not _Nothing else owner, info


class _Nothing(BaseModel):
    """Stands for "no table here"."""


def _choices(annotation: Any) -> tuple[Any, ...]:
    args = get_args(annotation)
    return args if get_origin(annotation) is Literal else tuple(c for arg in args for c in _choices(arg))


def _dig(values: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(values, list | tuple):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, Mapping) else getattr(values, part, None)
    return values


def _show(value: Any) -> str:
    return value if isinstance(value, str) and len(value) > 200 else _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
