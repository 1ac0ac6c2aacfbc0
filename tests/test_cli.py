"""The command line: what works, what a user sees of it, and how a run is interrupted and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli
from fewstep_trellis.shipped import NANO

import fewstep
from fewstep.cli import main
from fewstep.config.base import describe
from fewstep.config.resolve import pick
from fewstep.config.run import model_of

QUICK = ("train.steps=4", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "train.threads=1")
RUN = ("distill", "--method", "mdt-vm", "--backbone", "toy")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def works(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 0, out + err
    return out + err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert works(capsys, "--version") == f"fewstep {fewstep.__version__}\n"


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), ("distill",), ("bench",), ("sample",), ("plugins",), ("data",), ("data", "prepare")):
        assert "Usage: fewstep" in works(capsys, *command, "--help")


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)
    out, err = capsys.readouterr()
    assert "Usage: fewstep" in out
    assert err == ""


def test_a_dry_run_prints_the_config_and_starts_nothing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "my.toml").write_text("seed = 5\n[train]\nlr = 0.01\nsteps = 3\n")
    out = works(capsys, *RUN, "--config", "my.toml", "--dry-run", "train.steps=7", "objective.t.kind=uniform")
    rows = {
        cells[0]: cells[1:] for line in out.splitlines() if len(cells := re.split(r"\s*│\s*", line.strip("│ "))) == 3
    }
    assert rows["method"] == ["mdt-vm", "plugin mdt"]
    assert rows["dataset"] == ["toy", "plugin toy"]
    assert rows["seed"] == ["5", "my.toml"]
    assert rows["train.lr"] == ["0.01", "my.toml"]
    assert rows["train.steps"] == ["7", "command line"]
    assert rows["objective.t.kind"] == ["uniform", "command line"]
    assert rows["train.keep"][1] == "default"
    assert f"fewstep {fewstep.__version__}" in out
    assert "torch " in out
    assert [path.name for path in folder.iterdir()] == ["my.toml"]


def test_a_dry_run_looks_for_what_the_config_names(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ["distill", "-m", "mdt-vd", "-b", "trellis", "--dry-run"]
    for name in ("cut", "foreign"):
        shutil.copy(NANO / "ss_flow.json", f"{name}.json")
    weights = (NANO / "ss_flow.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(weights[:-1])
    (folder / "foreign.safetensors").write_text("no weights")
    (folder / "my_set").mkdir()
    (folder / "my_set" / "manifest.json").touch()
    for key, *parts in (
        ("data.root=my_sets", "data.root: got 'my_sets'; accepted: a prepared set", "did you mean 'my_set'?"),
        (f"data.encoder={NANO}/ss_decoder", "data.encoder: ", "holds a SparseStructureDecoder; accepted: a Sparse"),
        ("train.start=nowhere", "train.start: student 'nowhere': no such folder"),
        ("backbone.teacher=nowhere", "backbone.teacher: got 'nowhere', which does not exist; accepted: a checkpoint"),
        (f"backbone.teacher={NANO}/slat_flow", "backbone.teacher: ", "slat_flow: holds a SLatFlowModel; accepted: a S"),
        ("backbone.teacher=cut", "backbone.teacher: checkpoint: got 'cut.safetensors'; accepted: a complete"),
        ("backbone.teacher=foreign", "backbone.teacher: checkpoint: got 'foreign.safetensors'; accepted: a complete"),
        ("backbone.teacher=my_set", "backbone.teacher: checkpoint: got 'my_set.json'; accepted: a file that exists"),
        ("backbone.decoder=nowhere", "backbone.decoder: got 'nowhere', which does not exist"),
    ):
        assert main([*words, key]) == 2
        out, err = capsys.readouterr()
        assert key.partition("=")[0] in out  # the config is shown all the same
        assert err.startswith(f"error: {parts[0]}")
        assert all(part in err for part in parts)
    assert main(["distill", "-m", "cm", "-b", "toy", "--dry-run", "backbone.teacher=nowhere"]) == 2
    assert "unknown backbone.teacher 'nowhere': accepted are a run of fewstep teach" in capsys.readouterr().err
    for word in (f"backbone.teacher={NANO}/ss_flow.safetensors", "backbone.teacher=owner/repository/ss_flow"):
        assert main([*words, word]) == 0  # what may be on the hub is not fetched
    assert main([*words, "--toml", "data.root=nowhere"]) == 0  # a file for another machine
    taught = ["distill", "-m", "flow-matching", *words[3:], "backbone.decoder=later"]
    assert main(taught) == 0  # `fewstep teach` may make the decoder meanwhile


def test_the_memory_of_a_run_needs_no_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "-m", "mdt-vd", "-b", "trellis", "--dry-run", "--memory", "24GB"]
    assert "at most together" in works(capsys, *words, "backbone.teacher=ss_flow_img_dit_L_16l8_fp16")


def test_a_preset_is_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert "preset paper (fewstep_mdt)" in works(capsys, *RUN, "--preset", "paper", "--dry-run")


def test_help_config_lists_every_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    out = works(capsys, *RUN, "--help-config")
    for row in describe(model_of(*pick("mdt-vm", "toy"))):
        (line,) = [line for line in out.splitlines() if re.match(rf"│ {re.escape(row.key)} ", line)]
        assert row.accepted in line
        assert row.default in line
        assert row.meaning, f"{row.key} has no description"
        assert row.meaning in line


def test_every_key_of_every_method_and_backbone_has_a_meaning() -> None:
    from fewstep.plugins.registry import registry

    for method in registry().entries("objective"):
        for backbone in registry().entries("backbone"):
            rows = list(describe(model_of(*pick(method.name, backbone.name))))
            assert [row.key for row in rows if not row.meaning] == []


def test_distill_sample_and_bench(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "student: run/student" in works(capsys, *RUN, "--out", "run", *QUICK)
    record = json.loads((folder / "run" / "config.json").read_text())
    assert record["config"]["train"]["steps"] == 4
    assert record["sources"]["train.steps"] == "command line"

    out = works(capsys, "sample", "run", "--out", "a.png")
    assert "8 samples, 1 step, consistency: a.png" in out
    assert "warning" not in out
    out = works(
        capsys, "sample", "run/student", "--steps", "3", "--sampler", "heun", "--count", "5", "--out", "new/b.png"
    )
    assert "warning: the student was made for sampler 'consistency', got 'heun'" in out
    assert "warning: the student was made for 1, 2, 4 steps, got 3" in out
    assert (folder / "new" / "b.png").stat().st_size > 0
    out = works(capsys, "sample", "run", "--sampler", "consistency:0.5", "--out", "c.png")
    assert "8 samples, 1 step, consistency:0.5: c.png" in out
    assert "samples.png" in works(capsys, "sample", "run", "--out", "folder")
    assert (folder / "folder" / "samples.png").exists()

    bench = ("bench", "--backbone", "toy", "--steps", "1,2", "--seeds", "0", "--limit", "32")
    out = works(capsys, *bench, "--student", "run", "--student", "again=run", "--out", "report", "teacher_steps=5")
    assert "mdt-vm" in out
    assert "again" in out
    assert json.loads((folder / "report" / "environment.json").read_text())["teacher"]["contract"]["steps"][0] == 5
    out = works(
        capsys, *bench, "--student", "run", "--out", "second", "--compare", "report/rows.csv", "teacher_steps=5"
    )
    assert (folder / "second" / "compare.csv").exists()


def test_a_bench_takes_its_settings_from_a_preset_too(site: Path, cli: Cli) -> None:
    from conftest import fake_plugin

    plugin = (
        "from fewstep import hookimpl\n@hookimpl\ndef register_backbones(register):\n"
        "    register('mine', target='fewstep_toy.network:ToyFlow')\n"
    )
    quick = "steps = [1, 2]\nseeds = [0]\nlimit = 16\nteacher_steps = 3\n[backbone]\npretrain = 2\nwidth = 8\n"
    files = {"mine/plugin.py": plugin, "mine/presets/bench/quick.toml": quick}
    cli.paths.append(fake_plugin(site, "fewstep-mine", files))
    bench = ("bench", "--backbone", "mine")
    cli.works(*bench, "--preset", "quick", "--steps", "4", "--out", "report", "teacher_steps=6")
    record = json.loads((cli.folder / "report" / "environment.json").read_text())
    assert (record["steps"], record["seeds"], record["samples"]) == ([4], [0], 16)
    assert record["teacher"]["contract"]["steps"][0] == 6
    assert "did you mean 'quick'?" in cli.refuses(*bench, "--preset", "quik", "--out", "new")
    assert "quick" not in cli.refuses("distill", "-m", "cm", "-b", "mine", "--preset", "zzz")


def test_the_same_seed_gives_the_same_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    works(capsys, *RUN, "--out", "run", *QUICK)
    for name, seed in {"a": "0", "b": "0", "c": "1"}.items():
        works(capsys, "sample", "run", "--seed", seed, "--count", "200", "--out", f"{name}.png")
    a, b, c = ((folder / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_the_default_folder_is_named_after_the_choice(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "next: fewstep sample runs/mdt-vm-toy" in works(capsys, *RUN, *QUICK)
    assert (folder / "runs" / "mdt-vm-toy" / "student" / "model.safetensors").exists()


def test_a_student_from_another_machine_finds_its_defaults() -> None:
    from fewstep.api import students
    from fewstep.plugins.registry import registry

    entry = registry().get("backbone", "trellis")
    values = {"teacher": "/nowhere/at/all/ss_flow", "guidance": 2.5}
    with pytest.warns(UserWarning, match="trellis.teacher = /nowhere/at/all/ss_flow is not on this machine"):
        config = students._config_of(entry, values)
    assert config.guidance == 2.5
    assert config.teacher == type(config)().teacher


def interrupted(cli: Cli, *arguments: str) -> tuple[int, str]:
    """Start a run, press Ctrl-C once rows are written."""
    command = [sys.executable, "-m", "fewstep", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=cli.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )
    rows = cli.folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while (not rows.exists() or not rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_an_interrupted_run_says_how_to_go_on_and_does(cli: Cli) -> None:
    arguments = (*RUN, "--out", "run", *QUICK, "train.log_every=1", "train.lr_schedule=constant")
    code, err = interrupted(cli, *arguments, "train.steps=100000")
    assert code == 130
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("interrupted; to go on: fewstep distill ")]
    resume = line.partition("fewstep ")[2].split()
    assert resume[-1] == "--resume"
    done = sum(1 for _ in (cli.folder / "run" / "metrics.jsonl").open())
    assert "student: run/student" in cli.works(*resume, f"train.steps={done + 1000}")


def test_the_module_and_the_script_are_the_same() -> None:
    script = Path(sys.executable).parent / "fewstep"
    out = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True).stdout
    assert out == f"fewstep {fewstep.__version__}\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take notes since Python 3.11")
def test_a_bench_that_fails_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def broken(*_: object, out: Path, **__: object) -> None:
        out.mkdir()
        (out / "rows.csv").touch()
        raise ZeroDivisionError("a bug of a plugin")

    monkeypatch.setattr("fewstep.benchmark.api.bench", broken)
    with pytest.raises(ZeroDivisionError) as found:
        main(["bench", "-b", "toy", "--out", "b"])
    wanted = "measured so far: b/rows.csv; to go on: fewstep bench -b toy --out b --resume"
    assert found.value.__notes__[0] == wanted


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import fewstep.config.resolve

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(fewstep.config.resolve, "resolve_stages", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main([*RUN, "--dry-run"])
