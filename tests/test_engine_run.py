"""Config layers with their sources, presets of plugins, and what a run writes."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import engine_helpers
import pytest
from engine_helpers import OBJECTIVES, Regress
from fewstep_trackers.services import TensorBoard, WandB, flat
from rich.console import Console
from safetensors.torch import load_file

from fewstep.config.presets import available
from fewstep.config.run import Resolved
from fewstep.core.objective import Phase
from fewstep.engine import session
from fewstep.engine.progress import RunProgress, duration
from fewstep.engine.trackers import JsonLines
from fewstep.errors import FewstepError
from fewstep.plugins.registry import load, registry

PLUGIN = """
from fewstep import hookimpl

@hookimpl
def register_{kind}s(register):
    register("{name}", target="engine_helpers:{target}")
"""
PHASES = (*2 * [Phase(("critic",), "critic_loss")], Phase())  # the student comes third
METHOD = {
    "fit/paper.toml": "[train]\nlr = 0.5\nsteps = 7\n[objective]\nweight = 2.0\n",
    "fit/default.toml": "[train]\nbatch_size = 3\n",
    "quick.toml": "[train]\nsteps = 2\n",
    "tiny-regress/other.toml": "[train]\nsteps = 3\n",
    "bad.toml": "[train]\nlearning_rate = 1\n",
    "broken.toml": "[train\n",
}
BACKBONE = {
    "fit/paper.toml": "[train]\nlr = 0.25\n",
    "paper.toml": "[train]\nlr = 0.125\nbatch_size = 4\n",
    "fit/small/slat.toml": "[backbone]\nwidth = 4\n",
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A method "fit" and a backbone "net", each in a plugin of its own with presets."""
    engine_helpers.install()
    monkeypatch.syspath_prepend(str(tmp_path))
    known = list(registry().plugins)
    for package, kind, name, target, files in (
        ("preset_method", "objective", "fit", "Regress", METHOD),
        ("preset_backbone", "backbone", "net", "Tiny", BACKBONE),
    ):
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "plugin.py").write_text(PLUGIN.format(kind=kind, name=name, target=target))
        for path, text in files.items():
            (folder / "presets" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "presets" / path).write_text(text)
        load(registry(), EntryPoint(package, f"{package}.plugin", "fewstep"))
    yield
    for installed in [p for p in registry().plugins if p not in known]:
        assert installed.error is None
        registry().remove(installed)
        registry().manager.unregister(name=installed.key)
        registry().plugins.remove(installed)
    for name in [name for name in sys.modules if name.startswith("preset_")]:
        del sys.modules[name]


def resolve(preset: str | None = None, *keys: str, file: Path | None = None) -> Resolved:
    return engine_helpers.resolve("fit", "net", preset, [*([] if file is None else [file]), *keys])


def sources(resolved: Resolved) -> dict[str, tuple[Any, str]]:
    return {key: (value, source) for key, value, source in resolved.rows()}


@pytest.mark.usefixtures("plugins")
class TestResolve:
    def test_later_layers_win_and_every_key_knows_its_source(self, tmp_path: Path) -> None:
        file = tmp_path / "run.toml"
        file.write_text("[train]\nsteps = 11\nema = [0.9]\n[backbone]\nwidth = 5\n")
        found = sources(resolve("paper", "train.steps=13", "seed=4", file=file))
        assert found["train.lr"] == (0.25, "preset paper (preset_backbone)")  # of the method, before that of all
        assert found["objective.weight"] == (2.0, "preset paper (preset_method)")
        assert found["train.batch_size"] == (4, "preset paper (preset_backbone)")
        assert found["backbone.width"] == (5, str(file))
        assert found["train.ema"] == ([0.9], str(file))
        assert found["train.steps"] == (13, "command line")
        assert found["seed"] == (4, "command line")
        assert found["train.warmup"] == (0, "default")

    def test_default_preset_applies_when_none_is_asked_for(self) -> None:
        assert sources(resolve())["train.batch_size"] == (3, "preset default (preset_method)")
        assert resolve("quick").config.train.batch_size == 16
        assert engine_helpers.resolve("tiny-regress", "tiny").config.train.batch_size == 16  # ships none: no error

    def test_preset_names_with_a_slash(self) -> None:
        assert resolve("small/slat").config.backbone.width == 4
        assert resolve("fit/small/slat").config.backbone.width == 4

    def test_unknown_preset_lists_all_with_the_nearest(self) -> None:
        with pytest.raises(FewstepError) as caught:
            resolve("papr")
        assert "unknown preset 'papr': accepted are bad, broken, default, paper, quick;" in str(caught.value)
        assert "did you mean 'paper'?" in str(caught.value)
        assert available(registry().get("objective", "tiny-regress"), registry().get("backbone", "tiny")) == []

    def test_a_bad_key_says_where_it_came_from(self) -> None:
        with pytest.raises(FewstepError, match=r"train\.learning_rate.*\(from preset bad \(preset_method\)\)"):
            resolve("bad")
        with pytest.raises(FewstepError, match=r"broken\.toml"):
            resolve("broken")
        with pytest.raises(FewstepError) as caught:
            resolve(None, "train.lr=-1")
        assert "train.lr" in str(caught.value)
        assert "(from" not in str(caught.value)

    def test_unknown_names(self) -> None:
        for arguments, text in (
            (("fitt", "net"), "unknown method 'fitt'"),
            (("fit", "nett"), "unknown backbone 'nett'"),
            (("fit", "net", None, (), "tiny-dat"), "unknown dataset 'tiny-dat'"),
        ):
            with pytest.raises(FewstepError, match=text):
                engine_helpers.resolve(*arguments)

    def test_needs_are_checked_before_anything_loads(self) -> None:
        with pytest.raises(FewstepError, match="method 'tiny-two-times' needs 'two_time', which backbone 'net'"):
            engine_helpers.resolve("tiny-two-times", "net")


@pytest.fixture
def tiny() -> Resolved:
    engine_helpers.install()
    keys = ["train.steps=5", "train.batch_size=2", "train.log_every=2", "train.device=cpu", "train.threads=1"]
    return engine_helpers.resolve("tiny-regress", "tiny", layers=keys)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_run_writes_config_metrics_checkpoint_and_student(tiny: Resolved, tmp_path: Path) -> None:
    console = quiet()
    out = session.start(tiny, tmp_path / "a/run", False, console, command=["fewstep", "distill"])
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["train"]["steps"] == 5
    assert record["sources"]["train.steps"] == "command line"
    assert record["command"] == ["fewstep", "distill"]
    assert {"python", "torch", "numpy", "fewstep"} <= set(record["versions"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert rows[-1]["evaluations"]["student"]["forward"] == 10
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl", "student"]
    assert "step 5/5  fit " in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [2, 3])
def test_a_student_that_was_never_trained_is_reported(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_helpers.Critic, "phase", lambda self, step: PHASES[step])
    engine_helpers.install()
    keys = [f"train.steps={steps}", "train.batch_size=2", "train.device=cpu", "train.threads=1"]
    console = quiet()
    session.start(engine_helpers.resolve("tiny-critic", "tiny", layers=keys), tmp_path / "run", False, console)
    warned = "none of the 2 iterations trained the student" in console.file.getvalue()  # type: ignore[attr-defined]
    assert warned == (steps == 2)


def test_default_folder(tiny: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert session.start(tiny, tiny.folder, False, quiet()) == Path("runs/tiny-regress-tiny")


def test_a_mistake_found_early_leaves_no_folder(tmp_path: Path) -> None:
    engine_helpers.install()
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=["train.device=cpu", "train.export=0.5"])
    with pytest.raises(FewstepError, match=r"train\.export"):
        session.start(resolved, tmp_path / "run", False, quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("export", "source"), [("student", "net/student/"), ("0.5", "ema/student@0.5/")])
def test_the_exported_weights_are_those_that_were_asked_for(tmp_path: Path, export: str, source: str) -> None:
    engine_helpers.install()
    keys = ["train.steps=3", "train.device=cpu", "train.lr=0.05", "train.ema=[0.9, 0.5]", f"train.export={export}"]
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=keys)
    out = session.start(resolved, tmp_path / "run", False, quiet())
    state = load_file(out / "checkpoints/step-00000003/state.safetensors")
    written = load_file(out / "student/model.safetensors")
    for name, weight in written.items():
        alike = [key.removesuffix(name) for key in state if key.endswith(f"/{name}") and state[key].equal(weight)]
        assert source in alike
        assert not [key for key in alike if key != source and not key.startswith("optim/")]


def test_loss_that_is_no_number_says_what_is_kept(tmp_path: Path) -> None:
    engine_helpers.install()
    keys = ["train.steps=9", "train.checkpoint_every=2", "train.device=cpu", "objective.bad_step=5"]
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=keys)
    with pytest.raises(FewstepError) as caught:
        session.start(resolved, tmp_path / "run", False, quiet())
    for text in ("step 6: loss term 'fit' is nan", "checkpoint of step 4 is kept", "step-00000004", "--resume"):
        assert text in str(caught.value)
    assert (tmp_path / "run/checkpoints/step-00000004/state.safetensors").is_file()
    with pytest.raises(FewstepError, match="step 6: loss term 'fit' is nan"):
        session.start(resolved, tmp_path / "run", True, quiet())


def test_interrupt_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch, tiny: Resolved, tmp_path: Path) -> None:
    class Stopped(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Any]:
            if step.index == 3 and len(batch.x0) == 2 and step.tangents.reason == "not used by this method":
                raise KeyboardInterrupt
            return super().loss(batch, nets, step)

    monkeypatch.setitem(OBJECTIVES, "tiny-regress", Stopped)
    monkeypatch.setattr(engine_helpers, "Regress", Stopped)
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        session.start(tiny, tmp_path / "run", False, console)
    assert "stopped after step 3" in console.file.getvalue()  # type: ignore[attr-defined]


class Recorder:
    """A tracker that remembers."""

    made: ClassVar[list[Recorder]] = []

    def __init__(self, folder: Path, config: Any, step: int) -> None:
        self.step, self.events = step, []  # type: ignore[var-annotated]
        Recorder.made.append(self)

    def log(self, row: Any) -> None:
        self.events.append(row["step"])

    def flush(self) -> None:
        self.events.append("flush")

    def close(self) -> None:
        self.events.append("close")


def test_registered_tracker_gets_rows_and_is_closed(
    tiny: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep_trackers.services.TensorBoard", Recorder)
    session.start(tiny, tmp_path / "run", False, quiet(), trackers=["tensorboard"])
    assert Recorder.made[-1].events == [2, 4, 5, "flush", "close"]
    with pytest.raises(FewstepError, match=r"unknown tracker 'tensorbord'.*did you mean 'tensorboard'"):
        session.start(tiny, tmp_path / "other", False, quiet(), trackers=["tensorbord"])


@pytest.mark.parametrize(("cls", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb")])
def test_missing_tracker_package_is_named(
    cls: Any, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FewstepError, match=rf"{package} is not installed; to install it: .*\[trackers\]"):
        cls(tmp_path, {}, 0)


def test_wandb_and_tensorboard_get_slashed_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    wandb, board, client = ModuleType("wandb"), ModuleType("torch.utils.tensorboard"), ModuleType("tensorboard")
    wandb.init = lambda **keys: seen.append(keys) or wandb  # type: ignore[attr-defined]
    wandb.log = lambda row, step: seen.append((row, step))  # type: ignore[attr-defined]

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            seen.append(purge_step)

        def add_text(self, *_: Any) -> None: ...
        def add_scalar(self, *arguments: Any) -> None:
            seen.append(arguments)

    board.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    for name, module in (("wandb", wandb), ("torch.utils.tensorboard", board), ("tensorboard", client)):
        monkeypatch.setitem(sys.modules, name, module)
    row = {"step": 3, "loss": {"vm": 0.5}}
    WandB(tmp_path, {"a": 1}, 0).log(row)
    assert (seen[0]["resume"], seen[1]) == (None, ({"loss/vm": 0.5}, 3))
    TensorBoard(tmp_path / "run", {"a": 1}, 2).log(row)
    assert seen[2:] == [3, ("loss/vm", 0.5, 3)]
    assert dict(flat({"evaluations": {"teacher": {"forward": 2}}})) == {"evaluations/teacher/forward": 2}


def test_json_lines_keep_no_row_beyond_the_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n[]\n{"step": 3}\n{"st')
    JsonLines(tmp_path, {}, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_progress_on_a_terminal_and_off_it() -> None:
    row = {"step": 4, "loss": {"vm": 0.5}}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with RunProgress(console, 4) as progress:
            progress.say("warning: [brackets] stay")
            progress.update(row)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "vm 0.5" in text
        assert "[brackets]" in text
        assert ("\x1b[" in text) == terminal
    assert (duration(62), duration(3723)) == ("1:02", "1:02:03")


def test_progress_is_smoothed_and_plain_lines_are_rare() -> None:
    console = quiet()
    with RunProgress(console, 100, every=1e9) as progress:
        for step, value in ((1, 1.0), (2, 2.0), (3, 2.0)):
            progress.update({"step": step, "loss": {"vm": value}})
    assert progress.terms["vm"] == pytest.approx(0.9 * 1.1 + 0.2)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_time_left_is_there_from_the_second_on_and_follows_a_change_of_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("fewstep.engine.progress.time.monotonic", lambda: clock[0])
    console = quiet()
    with RunProgress(console, 400, every=0.0, name="slat") as progress:
        for step in range(1, 301):
            clock[0] += 1.0 if step <= 100 else 3.0
            progress.update({"step": step, "loss": {"vm": 1.0}})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "slat: step 1/400  vm 1  1 steps/s  6:39 left"
    assert lines[-1] == "slat: step 300/400  vm 1  0.333 steps/s  5:00 left"
    left = [re.findall(r"(\d+):(\d\d) left", line)[0] for line in lines]
    seconds = [60 * int(minutes) + int(rest) for minutes, rest in left]
    assert max(abs(after - before) for before, after in itertools.pairwise(seconds)) <= 15  # of 400 at a jump's worst


def test_a_narrow_terminal_keeps_the_count_and_the_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=70)
    with RunProgress(console, 4000, name="slat") as progress:
        for step in (1, 2):
            progress.update({"step": step, "loss": {"vm": 0.5, "a long name of a loss": 1.0}})
        progress.bar.progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"slat: vm 0\.5 .*… ━+ +2/4000 \d+:\d\d left", text)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True)
    with RunProgress(console, 4, every=0.0) as progress:
        progress.update({"step": 1, "loss": {"vm": 0.5}})
    assert "step 1/4  vm 0.5" in console.file.getvalue()  # type: ignore[attr-defined]


def test_callbacks_get_the_rows_of_metrics_jsonl(tiny: Resolved, tmp_path: Path) -> None:
    rows: list[Any] = []
    out = session.start(tiny, tmp_path / "run", False, quiet(), callbacks=[rows.append])
    assert rows == [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_an_exception_of_a_callback_ends_the_run_with_its_checkpoint_kept(tmp_path: Path) -> None:
    engine_helpers.install()
    keys = ["train.steps=6", "train.log_every=1", "train.checkpoint_every=2", "train.device=cpu"]
    resolved, console = engine_helpers.resolve("tiny-regress", "tiny", layers=keys), quiet()

    def stop(row: Any) -> None:
        if row["step"] == 5:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        session.start(resolved, tmp_path / "run", False, console, callbacks=[stop])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "stopped after step 5. The checkpoint of step 4 is kept" in text
    out = session.start(resolved, tmp_path / "run", True, quiet())
    rows = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_wandb_runs_of_two_stages_are_two_and_resume_keeps_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    wandb = ModuleType("wandb")
    wandb.init = lambda **keys: seen.append(keys)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for parent in ("one", "two"):
        (tmp_path / parent / "ss").mkdir(parents=True)
        WandB(tmp_path / parent / "ss", {}, 0)
    WandB(tmp_path / "one/ss", {}, 0)
    assert [keys["name"] for keys in seen] == ["one/ss", "two/ss", "one/ss"]
    assert seen[0]["id"] == seen[2]["id"] != seen[1]["id"]
    assert [keys["resume"] for keys in seen] == [None, None, "allow"]
