"""Bad input: exit code 2, one message that names key, what was got, what is accepted and the nearest; nothing is touched."""

# ruff: noqa: E501 (a table)
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Cli, contents, refusal
from PIL import Image

from fewstep.cli import main

QUICK = ("train.steps=2", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "train.threads=1")
CHOICE = ("--method", "mdt-vm", "--backbone", "toy")
RUN = ("distill", *CHOICE, "--out", "new")
BENCH = ("bench", "--backbone", "toy", "--out", "new")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and files and students that are none."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["distill", *CHOICE, "--out", str(folder / "run"), *QUICK]) == 0
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").write_text("not a student")
    (folder / "file").write_text("a file")
    for name in ("truncated", "tampered", "unreadable", "other-format", "other-backbone", "no-weights"):
        shutil.copytree(folder / "run" / "student", folder / name)
    weights = (folder / "run" / "student" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(weights[:-40])
    (folder / "tampered" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (folder / "unreadable" / "config.json").write_text("{")
    (folder / "no-weights" / "model.safetensors").unlink()
    text = (folder / "run" / "student" / "config.json").read_text()
    (folder / "other-format" / "config.json").write_text(text.replace("fewstep-student-1", "fewstep-student-9"))
    (folder / "other-backbone" / "config.json").write_text(text.replace('"backbone": "toy"', '"backbone": "toys"'))
    (folder / "bad.toml").write_text("[train\nsteps = 3\n")
    (folder / "unknown.toml").write_text("[train]\nstep = 3\n")
    (folder / "old.csv").write_text("a,b\n1,2\n")
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.json").write_text((folder / "run" / "config.json").read_text())
    return folder


CASES = {
    # names
    "method": ((*RUN[:1], "--method", "mdt-dv", *RUN[3:]), "unknown method 'mdt-dv': accepted are alphaflow, ", "did you mean 'mdt-vd'?"),
    "method-is-backbone": (("distill", "--method", "toy", "--backbone", "toy"), "unknown method 'toy'", "'toy' is the name of a backbone"),
    "no-method": (("distill", "--backbone", "toy"), "--method: missing; accepted: alphaflow, "),
    "no-backbone": (("distill", "--method", "cm"), "--backbone: missing; accepted: images, toy, trellis"),
    "backbone": (("distill", "--method", "cm", "--backbone", "treliss"), "unknown backbone 'treliss': accepted are images, toy, trellis, trellis-slat, trellis2, trellis2-shape, trellis2-shape-1024, trellis2-texture; did you mean 'trellis'?"),
    "dataset": ((*RUN, "--dataset", "sweethome"), "unknown dataset 'sweethome': accepted are ", "did you mean 'sweethome3d'?"),
    "preset": ((*RUN, "--preset", "papre"), "unknown preset 'papre': accepted are ", "did you mean 'paper'?"),
    "tracker": ((*RUN, "--tracker", "tensorbord", *QUICK), "unknown tracker 'tensorbord'", "did you mean 'tensorboard'?"),
    "sampler": (("sample", "run", "--sampler", "eular", "--out", "new"), "unknown sampler 'eular': accepted are ", "did you mean 'euler'?"),
    "bench-backbone": (("bench", "--backbone", "tpy"), "unknown backbone 'tpy'", "did you mean 'toy'?"),
    "bench-method": ((*BENCH, "--methods", "mdt-vmm"), "unknown method 'mdt-vmm'", "did you mean 'mdt-vm'?"),
    "bench-not-shipped": ((*BENCH, "--methods", "cm"), "backbone 'toy' ships no student of method 'cm': accepted are none"),
    "catalogue": (("data", "prepare", "sweethome", "--source", ".", "--out", "new"), "unknown kind of source 'sweethome'", "did you mean 'sweethome3d'?"),
    "command": (("distil",), "No such command 'distil'", "'distill'"),
    "option": (("distill", "--methd", "cm"), "No such option: --methd", "--method"),
    # keys and values
    "key": ((*RUN, "sed=1"), "unknown key 'sed': accepted at the top are ", "did you mean 'seed'?"),
    "nested-key": ((*RUN, "train.stesp=1"), "unknown key 'train.stesp': accepted under train are ", "did you mean 'train.steps'?"),
    "deep-key": ((*RUN, "objective.t.knd=uniform"), "unknown key 'objective.t.knd'", "did you mean 'objective.t.kind'?"),
    "teach-teacher": (("teach", "--backbone", "toy", "--out", "new", "backbone.teacher=learned"), "backbone.teacher: got 'learned'; accepted: to leave it out", "train.start=RUN"),
    "teach-teacher-dry": (("teach", "--backbone", "images", "--dry-run", "backbone.teacher=run"), "backbone.teacher: got 'run'; accepted: to leave it out"),
    "key-elsewhere": ((*RUN, "lr=0.1"), "unknown key 'lr'", "did you mean 'train.lr'?"),
    "key-in-wrong-table": ((*RUN, "objective.lr=0.1"), "unknown key 'objective.lr'", "did you mean 'train.lr'?"),
    "option-for-key": ((*RUN, "--train.steps=4"), "No such option: --train.steps", "a config key is given as KEY=VALUE, here train.steps=..."),
    "type": ((*RUN, "train.steps=many"), "train.steps: got 'many'; accepted: an integer >= 1"),
    "fraction": ((*RUN, "train.steps=1.5"), "train.steps: got 1.5; accepted: an integer >= 1"),
    "flag-for-number": ((*RUN, "train.lr=true"), "train.lr: got True; accepted: a number > 0"),
    "bound": ((*RUN, "train.lr=-1"), "train.lr: got -1; accepted: a number > 0"),
    "choice": ((*RUN, "train.precision=fp61"), "train.precision: got 'fp61'; accepted: 'fp32', 'bf16', 'fp16'; did you mean 'fp16'?"),
    "table-as-value": ((*RUN, "train=3"), "train: got 3; accepted: a table (accumulate, "),
    "list-with-spaces": (("bench", "-b", "toy", "--steps", "1", "2"), "the numbers of a list are joined by commas: 1,2"),
    "no-value": ((*RUN, "train.steps"), "override 'train.steps': accepted is KEY=VALUE"),
    "empty-value": ((*RUN, "train.steps="), "override 'train.steps=': no value after the ="),
    "bad-list": ((*RUN, "train.ema=[0.9,"), "override 'train.ema=[0.9,': the value is not valid TOML"),
    "bad-key": ((*RUN, "train..steps=3"), "override 'train..steps=3': 'train..steps' is not a dotted key"),
    "bench-key": ((*BENCH, "train.steps=3"), "unknown key 'train': accepted at the top are against, backbone, columns, data, "),
    "device": ((*RUN, *QUICK, "train.device=gpu"), "train.device: got 'gpu'; accepted: auto, cpu, or a device of this machine"),
    # files
    "no-config": ((*RUN, "--config", "nowhere.toml"), "config nowhere.toml: cannot be read: No such file", "accepted: a TOML file"),
    "bad-config": ((*RUN, "--config", "bad.toml"), "config 'bad.toml' is not valid TOML", "line 1"),
    "config-is-folder": ((*RUN, "--config", "empty"), "'empty' is not the folder of a run (it has no config.json); accepted: a folder that `fewstep distill` or `fewstep teach` wrote, or for --config a TOML"),
    "key-in-config": ((*RUN, "--config", "unknown.toml"), "unknown key 'train.step'", "did you mean 'train.steps'? (from unknown.toml)"),
    "out-exists": (("distill", *CHOICE, "--out", "run", *QUICK), "'run' exists; pass --resume to continue it or another --out"),
    "out-is-file": (("distill", *CHOICE, "--out", "file", *QUICK), "'file' exists"),
    "out-in-file": (("distill", *CHOICE, "--out", "file/run", *QUICK), "--out: got 'file/run'; accepted: a path to write to"),
    "resume-nothing": ((*RUN, "--resume", *QUICK), "--resume: there is no run 'new'"),
    "resume-foreign": (("distill", *CHOICE, "--out", "foreign", "--resume", *QUICK), "'foreign' is not the folder of a run"),
    "resume-changed": (("distill", *CHOICE, "--out", "run", "--resume", *QUICK, "train.lr=0.5"), "--resume with a changed config:", "train.lr: the run has ", ", given now is 0.5"),
    "sample-missing": (("sample", "nowhere", "--out", "new"), "student 'nowhere': no such folder"),
    "sample-file": (("sample", "file", "--out", "new"), "student 'file': a file; accepted: a folder"),
    "sample-empty": (("sample", "empty", "--out", "new"), "student 'empty': the folder is empty"),
    "sample-foreign": (("sample", "foreign", "--out", "new"), "student 'foreign': holds no config.json"),
    "sample-truncated": (("sample", "truncated", "--out", "new"), "student 'truncated/model.safetensors': truncated or changed"),
    "sample-tampered": (("sample", "tampered", "--out", "new"), "student 'tampered/model.safetensors': truncated or changed"),
    "sample-unreadable": (("sample", "unreadable", "--out", "new"), "student unreadable/config.json: truncated or not JSON"),
    "sample-no-weights": (("sample", "no-weights", "--out", "new"), "student 'no-weights': model.safetensors is missing"),
    "sample-format": (("sample", "other-format", "--out", "new"), "format 'fewstep-student-9'; accepted: 'fewstep-student-1'"),
    "sample-backbone": (("sample", "other-backbone", "--out", "new"), "unknown backbone 'toys'", "did you mean 'toy'?"),
    "sample-unfinished": (("sample", "unfinished", "--out", "new"), "student 'unfinished': this run has not finished"),
    "sample-out-exists": (("sample", "run", "--out", "file"), "--out: 'file' exists; accepted: a path that does not"),
    "sample-out-in-file": (("sample", "run", "--out", "file/a.png"), "--out: got 'file/a.png'; accepted: "),
    "image-missing": (("sample", "run", "--image", "nowhere.png", "--out", "new"), "--image: got 'nowhere.png'; accepted: a picture file; there is none of this name"),
    "image-is-text": (("sample", "run", "--image", "text.png", "--out", "new"), "--image: got 'text.png'; accepted: a picture (PNG, JPEG, WebP)"),
    "image-not-taken": (("sample", "run", "--image", "picture.png", "--out", "new"), "--image 'picture.png': this backbone takes no image"),
    "bench-out-exists": (("bench", "--backbone", "toy", "--out", "run"), "--out: 'run' exists; accepted: a folder that does not"),
    "bench-student": ((*BENCH, "--student", "empty"), "student 'empty': the folder is empty"),
    "bench-label": ((*BENCH, "--student", "=run"), "--student '=run': accepted is PATH or LABEL=PATH"),
    "bench-twice": ((*BENCH, "--student", "run", "--student", "run"), "label 'mdt-vm' is taken (two students with training seed 0); accepted: another label, or as replicates of one label runs that differ in their training seed only"),
    "bench-compare": ((*BENCH, "--compare", "nowhere.csv"), "nowhere.csv", "accepted"),
    "bench-compare-foreign": ((*BENCH, "--compare", "old.csv"), "old.csv", "accepted"),
    "data-missing": (("data", "prepare", "sweethome3d", "--source", "nowhere", "--out", "new"), "--source: got 'nowhere'; accepted: a folder with .sh3f files"),
    "data-empty": (("data", "prepare", "sweethome3d", "--source", "empty", "--out", "new"), "--source: got 'empty'; accepted: "),
    "data-out-exists": (("data", "prepare", "sweethome3d", "--source", "empty", "--out", "run"), "got 'run'; accepted: a folder that does not exist yet"),
    "data-resolution": (("data", "prepare", "sweethome3d", "--source", "empty", "--out", "new", "--resolution", "33"), "resolution", "33", "even"),
    # lists and numbers
    "guidance-word": (("sample", "run", "--guidance", "strong", "--out", "new"), "--guidance: got 'strong'; accepted: a number"),
    "size-unit": (("generate", "picture.png", "--size", "1m", "-o", "new"), "--size: got '1m'; accepted: a number"),
    "texture-word": (("generate", "picture.png", "--texture", "1k", "-o", "new"), "--texture: got '1k'; accepted: an integer from 0 to 8192"),
    "steps-word": ((*BENCH, "--steps", "1,two"), "--steps: got '1,two'; accepted: integers from 1 on, separated by commas"),
    "steps-zero": ((*BENCH, "--steps", "0,1"), "--steps: got '0,1'; accepted: integers from 1 on"),
    "steps-empty": ((*BENCH, "--steps", ""), "--steps: got ''; accepted: integers from 1 on"),
    "steps-gap": ((*BENCH, "--steps", "1,,2"), "--steps: got '1,,2'; accepted: integers from 1 on"),
    "steps-twice": ((*BENCH, "--steps", "1,2,1"), "--steps: 1 comes twice; accepted: each once"),
    "seeds-negative": ((*BENCH, "--seeds", "-1"), "--seeds: got '-1'; accepted: integers from 0 on"),
    "seeds-float": ((*BENCH, "--seeds", "0.5"), "--seeds: got '0.5'; accepted: integers from 0 on"),
    "methods-gap": ((*BENCH, "--methods", "cm,,pcm"), "--methods: got 'cm,,pcm'; accepted: a comma-separated list"),
    "methods-twice": ((*BENCH, "--methods", "cm,cm"), "--methods: cm comes twice"),
    "limit": ((*BENCH, "--limit", "1"), "--limit: got '1'; accepted: an integer from 2 on"),
    "sample-steps": (("sample", "run", "--steps", "0", "--out", "new"), "--steps: got '0'; accepted: an integer from 1 to 1000"),
    "sample-steps-word": (("sample", "run", "--steps", "few", "--out", "new"), "--steps: got 'few'; accepted: an integer from 1 to 1000"),
    "sample-count": (("sample", "run", "-n", "0", "--out", "new"), "--count: got '0'; accepted: an integer from 1 to 4096"),
    "data-views": (("data", "prepare", "sweethome3d", "--source", "empty", "--out", "new", "--views", "no"), "--views: got 'no'; accepted: an integer from 1 to 64"),
}  # fmt: skip
PREPARING = ("data-missing", "data-empty", "data-out-exists", "data-resolution")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_message(
    name: str, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, *parts = CASES[name]
    if name in PREPARING:
        pytest.importorskip("open3d", exc_type=ImportError)  # asked for before anything is looked at
    monkeypatch.chdir(made)
    before = contents(made)
    code = main(list(arguments))
    out, err = capsys.readouterr()
    message = refusal(code, out, err)
    for part in parts:
        assert part in message
    assert out == ""
    assert not (made / "new").exists()
    assert contents(made) == before


def test_a_process_of_its_own_behaves_alike(made: Path, cli: Cli) -> None:
    shutil.copytree(made / "truncated", cli.folder / "truncated")
    before = contents(cli.folder)
    assert "truncated or changed" in cli.refuses("sample", "truncated", "--out", "new")
    assert "did you mean 'mdt-vd'?" in cli.refuses("distill", "--method", "mdt-dv", "--backbone", "toy")
    assert "exists" in cli.refuses("distill", *CHOICE, "--out", "truncated", *QUICK)
    assert contents(cli.folder) == before


def test_a_refusal_is_told_from_a_crash() -> None:
    assert refusal(2, "", "error: bad\n") == "bad"
    for code, out, err in (
        (0, "", ""),
        (1, "", "error: x"),
        (2, "", "Traceback\nerror: x"),
        (2, "", "error: a\nerror: b"),
    ):
        with pytest.raises(AssertionError):
            refusal(code, out, err)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = contents(tmp_path)
    (tmp_path / "a").write_text("2")
    assert contents(tmp_path) != before
