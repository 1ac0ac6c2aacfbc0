"""Presets: TOML files in ``presets/`` beside a plugin's module. Imports no torch.

For method M and preset P these are merged, later ones winning: ``presets/P.toml`` of the method's plugin and of the
backbone's, then ``presets/M/P.toml`` of the method's plugin and of the backbone's. So a method's own file wins over
what a backbone says to all methods, and a backbone's file for that method over both.

A sum of methods takes the presets of its parts, "default" for a part without one of that name; where two disagree
outside of their own tables, the first part wins. ``presets/SUM/P.toml`` (``presets/cm+dmd2``, or the name that a plugin
registered the sum under) wins over them; it, too, falls back to "default".
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.config.base import read_toml
from fewstep.errors import FewstepError, invalid, unknown
from fewstep.plugins.registry import Combined, Entry, registry

DEFAULT = "default"
BENCH = "bench"  # folder of the presets of ``fewstep bench``
DATASET = "dataset"  # top-level key of a preset or config file: the data set that its ``data`` table is meant for


@dataclass(frozen=True)
class Preset:
    """One file of a preset; ``source`` is what a row of the run's config names: ``preset paper (fewstep_mdt)``.
    ``parts`` is the method of a sum that its ``objective`` table is meant for; of a sum in a sum, the outer first."""

    name: str
    package: str
    path: Path
    parts: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return f"preset {self.name} ({self.package})"

    def read(self) -> dict[str, Any]:
        """Its tables."""
        tables = read_toml(self.path)
        for part in reversed(self.parts if "objective" in tables else ()):
            tables["objective"] = {part: tables["objective"]}
        return tables


@dataclass(frozen=True)
class Shipped:
    """A preset's file, under the ``name`` that is typed; for one ``method`` and ``stage``, or all."""

    name: str
    method: str
    stage: str
    package: str
    path: Path


def shipped() -> Iterator[Shipped]:
    """Every file in the ``presets`` folders of the plugins."""
    places = {*registry().names("objective"), BENCH}
    for package, folder in _folders(*registry().all()):
        for path in sorted(folder.rglob("*.toml")):
            parts = path.relative_to(folder).with_suffix("").parts
            method = parts[0] if parts[0] in places and len(parts) > 1 else ""
            name, *stage = parts[bool(method) :]
            yield Shipped(name, method, "/".join(stage), package, path)


def find(method: Entry, backbone: Entry, name: str | None) -> list[Preset]:
    """The files of a preset, later ones winning. Without a name "default" is meant, and may be missing.

    Raises:
        FewstepError: for a preset that neither plugin ships, with all that they do.
    """
    if isinstance(method, Combined):
        return _of_parts(method, backbone, name)
    found = [preset for inner in ("", method.name) for preset in _files(inner, method, backbone, name or DEFAULT)]
    if not found and name is not None and name != DEFAULT:
        raise FewstepError(f"{_unknown(name, method, backbone)}{_of_others(name, method, backbone)}")
    return found


def _of_parts(method: Combined, backbone: Entry, name: str | None) -> list[Preset]:
    """``find`` for a sum of methods."""
    if name is not None and name not in (DEFAULT, *available(method, backbone)):
        raise _unknown(name, method, backbone)
    found: list[Preset] = []
    for part in reversed(method.parts):
        own = name if name in available(part, backbone) else None
        found += [replace(preset, parts=(part.name, *preset.parts)) for preset in find(part, backbone, own)]
    own_files = (_files(method.name, method, backbone, one) for one in (name or DEFAULT, DEFAULT))
    return found + next(filter(None, own_files), [])


def _files(inner: str, method: Entry, backbone: Entry, name: str) -> list[Preset]:
    """The files of this name in the folder ``inner`` of the presets of both plugins."""
    paths = [(package, folder / inner / f"{name}.toml") for package, folder in _folders(method, backbone)]
    return [Preset(name, package, path) for package, path in paths if path.is_file()]


def _unknown(name: str, method: Entry, backbone: Entry) -> FewstepError:
    stages = backbone.load().stages
    return unknown("preset", name, {_typed(one, stages) for one in available(method, backbone)})


def _of_others(name: str, method: Entry, backbone: Entry) -> str:
    """Which other methods have a preset of this name on this backbone, in words."""
    entries = [one for one in registry().entries("objective") if one.name != method.name]
    found = [one.name for one in entries if any(p.split("/")[0] == name for p in available(one, backbone))]
    return f"; of this name {', '.join(found)} {'have' if len(found) > 1 else 'has'} one" if found else ""


def find_for(place: str, backbone: Entry, name: str | None) -> list[Preset]:
    """The file ``presets/<place>/<name>.toml`` of the backbone's plugin, for what is no run (``fewstep bench``).

    Raises:
        FewstepError: for a preset that the plugin does not ship, with all that it does.
    """
    files = {
        path.stem: (package, path) for package, home in _folders(backbone) for path in (home / place).glob("*.toml")
    }
    if name not in (None, DEFAULT, *files):
        raise unknown("preset", name, files)
    return [Preset(stem, *file) for stem, file in files.items() if stem == (name or DEFAULT)]


def data_set(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """The registered data set that the last of these (source, values) names, if any does.

    Raises:
        FewstepError: for a name that is no text.
    """
    names = [(source, values[DATASET]) for source, values in layers if DATASET in values]
    if names and not isinstance(names[-1][1], str):
        raise invalid(f"{DATASET} (from {names[-1][0]})", names[-1][1], "the name of a registered data set")
    return names[-1][1] if names else None


def available(method: Entry, backbone: Entry) -> list[str]:
    """Names that ``find`` takes for this pair; those of another method or of another model's stage are left out."""
    if isinstance(method, Combined):
        folders = [folder / method.name for _, folder in _folders(method, backbone)]
        parts = {name for part in method.parts for name in available(part, backbone)}
        return sorted(parts.union(path.stem for folder in folders for path in folder.glob("*.toml")))
    stages = backbone.load().stages
    others = {*registry().names("objective"), BENCH} - {method.name}
    names = {
        path.relative_to(folder).with_suffix("").as_posix().removeprefix(f"{method.name}/")
        for _, folder in _folders(method, backbone)
        for path in folder.rglob("*.toml")
    }
    own = (name for name in names if "/" not in name or name.rpartition("/")[2] in stages)
    return sorted(name for name in own if name.partition("/")[0] not in others or "/" not in name)


def _typed(name: str, stages: Collection[str]) -> str:
    """``mdt-dist`` of ``mdt-dist/slat``: the stage is added by itself."""
    above, _, last = name.rpartition("/")
    return above if above and last in stages else name


def _folders(*entries: Entry) -> list[tuple[str, Path]]:
    """(package, its presets folder) of the plugins that brought these entries, in this order, each once."""
    homes = [_home(*owner) for owner in dict.fromkeys((e.distribution, e.plugin) for e in entries)]
    return [(package, folder / "presets") for package, folder in homes if folder is not None]


def _home(distribution: str, plugin: str) -> tuple[str, Path | None]:
    """(package, folder) of a plugin's module; a plugin that is an object lies where its class does."""
    found = registry().manager.get_plugin(f"{distribution}:{plugin}")
    module = found if hasattr(found, "__file__") else sys.modules.get(type(found).__module__)
    file = None if found is None else getattr(module, "__file__", None)
    package = str(getattr(module, "__package__", "") or getattr(module, "__name__", plugin))
    return package, Path(file).parent if file else None
