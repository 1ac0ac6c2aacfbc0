"""Presets: TOML files in ``presets/`` beside a plugin's module. Imports no torch.

For method M and preset P these are merged, later ones winning: ``presets/P.toml`` of the method's plugin and of the
backbone's, then ``presets/M/P.toml`` of the method's plugin and of the backbone's. So a method's own file wins over a
backbone's file for all methods, and a backbone's file for that method wins over both.

A sum of methods takes the presets of its parts, "default" for a part without one of that name; where two disagree
outside their own tables, the first part wins. ``presets/SUM/P.toml`` (``presets/cm+dmd2``, or the name under which a
plugin registered the sum) wins over them and also falls back to "default".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """One file of a preset. ``source`` is its name among the sources of config keys: ``preset paper (fewstep_mdt)``.

    ``parts`` is the method of a sum that its ``objective`` table is meant for; for a sum in a sum, the outer one first.
    """

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
    """A file of the preset that users type as ``name``; for one ``method`` and ``stage``, or for all where empty."""

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
    """The files of a preset, later ones winning. Without a name it is "default", which may be missing.

    Raises:
        FewstepError: for a preset that neither plugin ships, listing those that they ship.
    """
    if isinstance(method, Combined):
        return _of_parts(method, backbone, name)
    files = [preset for inner in ("", method.name) for preset in _files(inner, method, backbone, name or DEFAULT)]
    if not files and name is not None and name != DEFAULT:
        raise FewstepError(f"{_unknown(name, method, backbone)}{_of_others(name, method, backbone)}")
    return files


def _of_parts(method: Combined, backbone: Entry, name: str | None) -> list[Preset]:
    """``find`` for a sum of methods."""
    if name is not None and name not in (DEFAULT, *available(method, backbone)):
        raise _unknown(name, method, backbone)
    of_parts: list[Preset] = []
    for part in reversed(method.parts):
        shared = name if name in available(part, backbone) else None
        of_parts += [replace(preset, parts=(part.name, *preset.parts)) for preset in find(part, backbone, shared)]
    of_sum = (_files(method.name, method, backbone, tried) for tried in (name or DEFAULT, DEFAULT))
    return of_parts + next(filter(None, of_sum), [])


def _files(inner: str, method: Entry, backbone: Entry, name: str) -> list[Preset]:
    """The files of this name in the folder ``inner`` of the presets of both plugins."""
    paths = [(package, folder / inner / f"{name}.toml") for package, folder in _folders(method, backbone)]
    return [Preset(name, package, path) for package, path in paths if path.is_file()]


def _unknown(name: str, method: Entry, backbone: Entry) -> FewstepError:
    network, found = backbone.load(), available(method, backbone)
    typed = (preset.removesuffix(f"/{network.stage}") for preset in found)  # the stage is added automatically
    here = {preset for preset in typed if "/" not in preset}
    others = [stage for stage in network.stages if f"{name}/{stage}" in found]
    if not others:
        return unknown("preset", name, here)
    only = f"preset {name!r}: shipped for stage {' and '.join(others)} only"
    return FewstepError(f"{only}; accepted for {network.stage}: {', '.join(sorted(here))}")


def _of_others(name: str, method: Entry, backbone: Entry) -> str:
    """Which other methods have a preset of this name on this backbone, in words."""
    names = {name, f"{name}/{backbone.load().stage}"}
    others = [entry for entry in registry().entries("objective") if entry.name != method.name]
    having = [entry.name for entry in others if names.intersection(available(entry, backbone))]
    return f"; of this name {', '.join(having)} {'have' if len(having) > 1 else 'has'} one" if having else ""


def find_for(place: str, backbone: Entry, name: str | None) -> list[Preset]:
    """The file ``presets/<place>/<name>.toml`` of the backbone's plugin, for a command without a method (``fewstep
    bench``).

    Raises:
        FewstepError: for a preset that the plugin does not ship, listing those that it ships.
    """
    files = {
        path.stem: (package, path) for package, home in _folders(backbone) for path in (home / place).glob("*.toml")
    }
    if name not in (None, DEFAULT, *files):
        raise unknown("preset", name, files)
    return [Preset(stem, *file) for stem, file in files.items() if stem == (name or DEFAULT)]


def data_set(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """The registered data set that the last of these (source, values) with that key names; None if none has it.

    Raises:
        FewstepError: for a name that is not text.
    """
    names = [(source, values[DATASET]) for source, values in layers if DATASET in values]
    if names and not isinstance(names[-1][1], str):
        raise invalid(f"{DATASET} (from {names[-1][0]})", names[-1][1], "the name of a registered data set")
    return names[-1][1] if names else None


def available(method: Entry, backbone: Entry) -> list[str]:
    """Names that ``find`` takes for this method and backbone, without those of another method or model's stage."""
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


def _folders(*entries: Entry) -> list[tuple[str, Path]]:
    """(package, its presets folder) of the plugins that registered these entries, in this order, each once."""
    homes = [_home(*owner) for owner in dict.fromkeys((e.distribution, e.plugin) for e in entries)]
    return [(package, folder / "presets") for package, folder in homes if folder is not None]


def _home(distribution: str, plugin: str) -> tuple[str, Path | None]:
    """(package, folder) of a plugin's module; for a plugin that is an object, of the module of its class."""
    loaded = registry().manager.get_plugin(f"{distribution}:{plugin}")
    module = loaded if hasattr(loaded, "__file__") else sys.modules.get(type(loaded).__module__)
    file = None if loaded is None else getattr(module, "__file__", None)
    package = str(getattr(module, "__package__", "") or getattr(module, "__name__", plugin))
    return package, Path(file).parent if file else None
