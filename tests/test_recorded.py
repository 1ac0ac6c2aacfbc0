"""A run's own config: going on by it, starting another from it, and a resolved config as a file."""

from __future__ import annotations

import codecs
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import refusal

import fewstep
from fewstep.cli import main
from fewstep.config import presets
from fewstep.config.base import several, tomllib
from fewstep.config.resolve import resolve_stages
from fewstep.config.run import Resolved
from fewstep.config.written import _key, _value, as_toml
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry

SMALL = ("backbone.pretrain=0", "backbone.width=8", "data.size=64", "train.batch_size=8", "train.checkpoint_every=2")
NAMES = ("--method", "mdt-vm", "--backbone", "toy")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Path:
    """A finished run of four iterations."""
    works(capsys, "distill", *NAMES, *SMALL, "train.steps=4", "objective.interval=0.05", "--out", "a")
    return Path("a")


def works(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, out + err
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(arguments)
    return refusal(code, *capsys.readouterr())


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_a_run_goes_on_by_its_own_config(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    before = record(run)
    assert "resuming a after step 4" in works(capsys, "distill", "--resume", "--out", "a")
    assert "resuming a after step 4" in works(capsys, "distill", "--resume", "a")
    assert "resuming a after step 4" in works(capsys, "distill", "--resume", "--out", "a", "--method", "mdt-vm")
    after = record(run)
    assert (after["config"], after["sources"], after["identity"]) == tuple(
        before[key] for key in ("config", "sources", "identity")
    )
    assert after["sources"]["objective.interval"] == "command line"
    assert after["sources"]["train.lr"] == "preset default (fewstep_toy)"
    assert fewstep.distill(out="a", resume=True).folder == run


def test_a_student_carries_the_contract_of_its_method(run: Path) -> None:
    contract = record(run / "student")["contract"]
    assert (contract["sampler"], contract["steps"], contract["guidance"]) == ("consistency", [1, 2, 4], 1.0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--method", "cm"), "--resume a: --method: got 'cm'; accepted: mdt-vm, or leave it out"),
        (("--backbone", "trellis"), "--resume a: --backbone: got 'trellis'; accepted: toy, or leave it out"),
        (("--dataset", "sweethome3d"), "--resume a: --dataset: got 'sweethome3d'; accepted: toy, or leave it out"),
        (("--preset", "paper"), "--resume a: --preset: got 'paper'; accepted: to leave it out: the run has none"),
        (("objective.interval=0.06",), "objective.interval: the run has 0.05, given now is 0.06"),
        (("--stage", "both"), "--stage: got 'both'; backbone 'toy' has no stages"),
        (("--method", "mdt-vn"), "unknown method 'mdt-vn'"),
    ],
)
def test_words_that_contradict_the_run_are_refused(
    capsys: pytest.CaptureFixture[str], run: Path, words: tuple[str, ...], text: str
) -> None:
    assert text in refused(capsys, "distill", *words, "--resume", "--out", "a")


def test_what_is_no_run_cannot_be_resumed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "there is no run 'none'; accepted: a folder" in refused(capsys, "distill", "--resume", "--out", "none")
    assert "'empty' is not the folder of a run" in refused(capsys, "distill", "--resume", "empty")
    (folder / "odd").mkdir()
    (folder / "odd" / "config.json").write_text("[1]")
    assert "'odd/config.json' is not the config.json of a run" in refused(capsys, "distill", "--resume", "--out", "odd")
    assert "which run? accepted: --resume --out RUN" in refused(capsys, "distill", "--resume")


@pytest.mark.parametrize("named", ["a", "a/config.json", "a/student/config.json"])
def test_a_run_is_a_config(capsys: pytest.CaptureFixture[str], run: Path, named: str) -> None:
    file = run / "config.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    works(capsys, "distill", "--config", named, "--out", "b", "train.steps=2")
    again = record(Path("b"))
    assert (again["method"], again["backbone"]) == ("mdt-vm", "toy")
    assert (again["config"]["objective"]["interval"], again["config"]["train"]["steps"]) == (0.05, 2)
    assert again["sources"]["objective.interval"] == named


def test_a_dry_run_as_toml_is_a_config(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    text = works(capsys, "distill", "--dry-run", "--toml", "--config", "a")
    Path("c.toml").write_text(text)
    again = works(capsys, "distill", *NAMES, "--config", "c.toml", "--dry-run", "--toml")
    assert again == text


def test_any_text_comes_back_from_toml() -> None:
    for text in ("a b", 'q"uo\\te', "chaise\u0301 \u6905 \U0001fa91", "tab\tand\x7fdel\n", ""):
        assert tomllib.loads(f"{_key(text)} = {_value(text)}") == {text: text}
    odd = {"a": [1, 2.5e-8, True], "b": {"c d": None}, "e": []}
    assert tomllib.loads(f"x = {_value(odd)}") == {"x": {"a": [1, 2.5e-8, True], "b": {"c d": "none"}, "e": []}}


def identities(stages: dict[str, Resolved]) -> dict[str, Any]:
    return {name: one.identity() for name, one in stages.items()}


def choices() -> list[tuple[str, str, str | None, str | None]]:
    """(method, backbone, stage, preset) of everything that is shipped."""
    found = []
    for method, backbone in product(registry().entries("objective"), registry().entries("backbone")):
        stages = backbone.load().stages
        needs = method.load()(method.load_config()()).needs
        if {"features", "policy"} & needs - backbone.load().provides:
            continue
        if "features" in needs:  # which the second stage does not provide
            stages = {}
        found += [(method.name, backbone.name, None, preset) for preset in (None, *sorted(named(method, backbone)))]
        if stages and next(iter(stages.values())) == backbone.name:  # "both" is the same from every stage
            of_all = set.intersection(*(named(method, registry().get("backbone", name)) for name in stages.values()))
            found += [(method.name, backbone.name, "both", preset) for preset in (None, *sorted(of_all))]
    return found


def named(method: Entry, backbone: Entry) -> set[str]:
    """The presets that can be typed for this network."""
    own = {name.removesuffix(f"/{backbone.load().stage}") for name in presets.available(method, backbone)}
    return {name for name in own if "/" not in name and name not in backbone.load().stages}


@pytest.mark.parametrize(("method", "backbone", "stage", "preset"), choices())
def test_every_preset_comes_back_from_its_file(
    method: str, backbone: str, stage: str | None, preset: str | None, tmp_path: Path
) -> None:
    given = ["data.roots=x y"] if preset == "mdt-dist" else []
    once = resolve_stages(method, backbone, stage, preset, given)
    file = tmp_path / "c.toml"
    file.write_text(as_toml(once), encoding="utf-8")
    again = resolve_stages(method, backbone, stage, None, [file])
    assert identities(again) == identities(once)
    assert as_toml(again) == as_toml(once)


def test_a_preset_of_another_method_is_pointed_to() -> None:
    with pytest.raises(FewstepError, match=r"unknown preset 'demo': accepted are .*; of this name mdt-vd has one"):
        resolve_stages("cm", "trellis", None, "demo")


def test_a_methods_own_default_wins_over_a_backbones_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for home, files in {
        "method": {"default": 1, "m/default": 2},
        "backbone": {"default": 3, "m/default": 4},
    }.items():
        for name, value in files.items():
            path = tmp_path / home / f"{name}.toml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"value = {value}")
    folders = [(home, tmp_path / home) for home in ("method", "backbone")]
    monkeypatch.setattr(presets, "_folders", lambda *_: folders)

    class Named:
        name = "m"

    assert [one.read()["value"] for one in presets.find(Named(), Named(), None)] == [1, 3, 2, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/mine", ["runs/mine"]),
        (Path("a"), [Path("a")]),
        (1, [1]),
        (0, [0]),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        ((), []),
        (range(2), [0, 1]),
    ],
)
def test_one_stands_for_itself(given: Any, expected: list[Any]) -> None:
    assert several(given) == expected


def test_one_student_needs_no_list(run: Path) -> None:
    keys: dict[str, Any] = {"backbone": {"pretrain": 0, "width": 8}, "data": {"held_out": 8}, "teacher_steps": 2}
    for number, student in enumerate(("a", Path("a"), {"mine": "a"}, ["a"], {"a"})):
        out = f"bench-{number}"
        table = fewstep.bench("toy", students=student, steps=1, seeds=0, limit=4, out=out, config=keys)
        assert {line.steps for line in table.lines if line.method == "mdt-vm"} == {1}
    with pytest.raises(FewstepError, match="ships no student of method 'mdt-vd'"):
        fewstep.bench("toy", methods="mdt-vd", steps=1, seeds=0, out="x")
