"""Models of two stages: which one a command runs on, whose keys are whose, and runs one after the other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import stages_helpers
from conftest import contents, refusal

from fewstep.cli import main
from fewstep.config.resolve import resolve_stages
from fewstep.config.stages import chosen, keys_of
from fewstep.engine.export import load_student
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

QUICK = ("train.steps=3", "train.batch_size=4", "train.threads=1")
DISTILL = ("distill", "--method", "mdt-vd", "--backbone", "duo", *QUICK)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in an empty folder, with the model of two stages registered."""
    if "duo" not in registry().names("backbone"):
        stages_helpers.install()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    return refusal(code, *capsys.readouterr())


def works(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def names(stage: str | None, backbone: str = "duo") -> dict[str, str]:
    return {key: entry.name for key, entry in chosen(registry().get("backbone", backbone), stage).items()}


def test_which_backbones_a_stage_names() -> None:
    assert names(None) == {"first": "duo"}
    assert names(None, "duo-second") == {"second": "duo-second"}
    assert names("second") == {"second": "duo-second"}
    assert list(names("both").items()) == [("first", "duo"), ("second", "duo-second")]
    assert names(None, "toy") == {"": "toy"}


def test_trellis_is_its_structure_stage_unless_told_otherwise() -> None:
    assert names(None, "trellis") == {"ss": "trellis"}
    assert names("both", "trellis") == names("both", "trellis-slat") == {"ss": "trellis", "slat": "trellis-slat"}
    found = resolve_stages("mdt-vd", "trellis", "both", layers=["slat.train.steps=7"])
    assert (found["slat"].config.train.steps, found["ss"].config.train.steps) == (7, 810)


def test_a_preset_of_another_stage_is_named_with_its_stage() -> None:
    (found,) = resolve_stages("mdt-vd", "trellis", preset="long").values()
    assert (found.preset, found.config.train.steps) == ("long/ss", 1620)
    for stage in ("slat", "both"):
        with pytest.raises(FewstepError, match=r"preset 'long': shipped for stage ss only; accepted for slat: default"):
            resolve_stages("mdt-vd", "trellis", stage, preset="long")


@pytest.mark.parametrize("command", ["distill", "bench"])
def test_stages_that_are_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = ("--method", "mdt-vd") if command == "distill" else ()
    message = refused(capsys, command, *method, "--backbone", "toy", "--stage", "ss")
    assert message == "--stage: got 'ss'; backbone 'toy' has no stages: leave --stage out"
    message = refused(capsys, command, *method, "--backbone", "duo", "--stage", "frist")
    assert message == "unknown --stage 'frist': accepted are both, first, second; did you mean 'first'?"


def test_keys_below_a_stage_are_for_it_alone_and_win() -> None:
    values = {"train": {"steps": 1, "lr": 2}, "b": {"train": {"steps": 5}}, "seed": 3}
    assert keys_of(values, "a", ("a", "b")) == {"train": {"steps": 1, "lr": 2}, "seed": 3}
    assert keys_of(values, "b", ("a", "b")) == {"train": {"steps": 5, "lr": 2}, "seed": 3}
    with pytest.raises(FewstepError, match=r"b: got 3; accepted: keys below it"):
        keys_of({"b": 3}, "b", ("a", "b"))


def test_overrides_file_and_sources_by_stage(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nlr = 0.5\n[second.train]\nlr = 0.25\nsteps = 9\n")
    found = resolve_stages("mdt-vd", "duo", "both", layers=[file, "train.steps=4", "first.train.steps=5"])
    assert {name: one.config.train.steps for name, one in found.items()} == {"first": 5, "second": 4}
    assert {name: one.config.train.lr for name, one in found.items()} == {"first": 0.5, "second": 0.25}
    sources = {key: source for key, _, source in found["second"].rows()}
    assert (sources["train.steps"], sources["train.lr"]) == ("command line", str(file))


def test_keys_of_a_stage_that_does_not_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, *DISTILL, "second.train.steps=4")
    assert message == "unknown key 'second': that stage does not run; accepted: --stage both, or keys of first"
    message = refused(capsys, "bench", "--backbone", "duo", "--stage", "both", "second.steps=[1]")
    assert message.startswith("unknown key below second 'steps': accepted are backbone, data")


def test_dry_run_and_help_show_both(capsys: pytest.CaptureFixture[str]) -> None:
    out = works(capsys, *DISTILL, "--stage", "both", "--dry-run", "second.train.steps=8")
    assert out.count("resolved config of stage") == 2
    first, second = out.split("resolved config of stage second")
    assert [re.search(r"│ train\.steps +│ (\d+) ", part)[1] for part in (first, second)] == ["3", "8"]  # type: ignore[index]
    out = works(capsys, *DISTILL, "--stage", "both", "--help-config")
    assert "config keys of stage first" in out
    assert "config keys of stage second" in out


def test_both_is_one_after_the_other(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Deliberate failure: the second stage alone, into another folder, gives the very same weights."""
    out = works(capsys, *DISTILL, "--stage", "both", "--out", "pair")
    assert "student: pair/first/student" in out
    assert "student: pair/second/student" in out
    works(capsys, *DISTILL, "--stage", "second", "--out", "alone")
    weights = [(folder / place / "student" / "model.safetensors").read_bytes() for place in ("pair/second", "alone")]
    assert weights[0] == weights[1]
    for stage, backbone in stages_helpers.STAGES.items():
        _, info = load_student(folder / "pair" / stage)
        assert (info.backbone, info.step) == (backbone, 3)
        # The student is evaluated twice a step in VM and VD each, and once for VD's sample: on so many samples of 4.
        assert info.budget["student"]["forward"] == 3 * 4 * 5


def test_both_resumes_where_it_was(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    works(capsys, *DISTILL, "--stage", "both", "--out", "pair")
    weights = folder / "pair" / "second" / "student" / "model.safetensors"
    before, first = weights.read_bytes(), contents(folder / "pair" / "first" / "checkpoints")
    (folder / "pair" / "second").rename(folder / "gone")  # as if killed between the stages
    works(capsys, *DISTILL, "--stage", "both", "--out", "pair", "--resume")
    assert weights.read_bytes() == before
    assert contents(folder / "pair" / "first" / "checkpoints") == first
    message = refused(capsys, *DISTILL, "train.lr=1e-2", "--stage", "both", "--out", "pair", "--resume")
    assert "--resume with a changed config" in message


def test_both_goes_on_by_its_own_config_also_where_a_stage_had_not_begun(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    keys = ("objective.interval=0.03", "second.train.steps=2")
    works(capsys, *DISTILL, "--stage", "both", "--out", "pair", *keys)
    shutil.rmtree(folder / "pair" / "second")
    works(capsys, "distill", "--resume", "--out", "pair")
    record = json.loads((folder / "pair" / "second" / "config.json").read_text())
    config = record["config"]
    assert (config["objective"]["interval"], config["train"]["steps"], config["train"]["batch_size"]) == (0.03, 2, 4)
    assert record["sources"]["objective.interval"] == "command line"
    for words, text in (
        (("--stage", "second"), "--stage: got 'second'; accepted: both, or leave it out"),
        (("--backbone", "duo-second", "--stage", "second"), "--backbone: got 'duo-second'; accepted: duo, or leave it"),
        (("second.train.lr=0.5",), "train.lr: the run has 0.0001, given now is 0.5"),
    ):
        assert text in refused(capsys, "distill", "--resume", "pair", *words)
    assert "[second.train]\nsteps = 2\n" in works(capsys, "distill", "--config", "pair", "--dry-run", "--toml")
    works(capsys, "distill", "--config", "pair/second", "--out", "again")
    assert json.loads((folder / "again" / "config.json").read_text())["config"] == config


def test_folders_that_both_does_not_touch(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    works(capsys, *DISTILL, "--out", "one")
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    before = contents(folder)
    both = (*DISTILL, "--stage", "both", "--out")
    assert "accepted: another --out" in refused(capsys, *both, "one")
    assert "does not hold runs of stages first, second" in refused(capsys, *both, "one", "--resume")
    assert "does not hold runs of stages" in refused(capsys, *both, "other", "--resume")
    assert "'other' exists; pass --resume" in refused(capsys, *both, "other")
    assert "there is no run 'none'" in refused(capsys, *both, "none", "--resume")
    assert contents(folder) == before


def test_a_stage_without_checkpoint_starts_again(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "pair" / "first").mkdir(parents=True)
    works(capsys, *DISTILL, "--stage", "both", "--out", "pair", "--resume")
    record = json.loads((folder / "pair" / "second" / "config.json").read_text())
    assert (record["backbone"], record["config"]["train"]["steps"]) == ("duo-second", 3)


def test_sampling_takes_one_stage_of_a_pair(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    works(capsys, *DISTILL, "--stage", "both", "--out", "pair")
    message = refused(capsys, "sample", "pair")
    assert message.endswith("holds no config.json; accepted: one of its students first, second")
    out = works(capsys, "sample", "pair/second", "--out", "a.png", "-n", "3")
    assert out.startswith("3 samples")
    assert (folder / "a.png").read_text() == "samples"
