"""``fewstep.bench`` from Python: students in every form it takes, settings, folders, and how the table shows itself."""

from __future__ import annotations

import builtins
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stages_helpers
import torch
from conftest import refusal
from rich.console import Console

from fewstep.benchmark.api import BenchTable, bench
from fewstep.benchmark.report import BenchTable as Table
from fewstep.cli import main
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

QUIET = Console(quiet=True)


@dataclass
class Made:
    """As ``fewstep.distill`` and ``fewstep.load`` return."""

    folder: Path


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a trained pair of stages in ``pair``."""
    if "duo" not in registry().names("backbone"):
        stages_helpers.install()
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = ("train.steps=2", "train.batch_size=4", "train.threads=1", "train.device=cpu")
        assert main(["distill", "-m", "mdt-vm", "-b", "duo", "--stage", "both", "--out", "pair", *quick]) == 0
        yield folder


def run(**options: Any) -> BenchTable:
    values = {"students": {"mine": "pair"}, "steps": [1], "seeds": [0], "stage": "both", "console": QUIET, **options}
    return bench("duo", config={"teacher_steps": 2, "device": "cpu", "threads": 1}, **values)


@pytest.fixture(scope="module")
def table(home: Path) -> BenchTable:
    return run(out="report", seeds=[0, 1])


def test_students_are_folders_or_what_has_one() -> None:
    values = []
    pair = Path("pair")
    forms: list[Any] = [{"mine": "pair"}, {"mine": pair}, {"mine": Made(pair)}, [("mine", "pair")], [Made(pair)]]
    for number, students in enumerate(forms):
        found = run(students=students, out=f"forms{number}")
        label = "mdt-vm" if number == 4 else "mine"
        values.append([row.value for row in found.rows if row.label == label and row.metric == "size"])
    assert values[0]
    assert all(value == values[0] for value in values)
    with pytest.raises(FewstepError, match=r"students: got 3; accepted: a folder"):
        run(students={"mine": 3})


def test_a_student_of_another_teacher_is_named_with_the_keys_that_give_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own keys end the warning; a file of another machine cannot be compared."""
    network = ("backbone.width=8", "backbone.pretrain=0")
    quick = ("train.steps=2", "train.batch_size=4", "train.threads=1", "train.device=cpu", *network)
    own, out = tmp_path / "teacher", str(tmp_path / "run")
    assert main(["teach", "--backbone", "toy", "--out", str(own), *quick]) == 0
    assert main(["distill", "-m", "mdt-vm", "-b", "toy", "-o", out, *quick, f"backbone.teacher={own}"]) == 0
    words = ["bench", "-b", "toy", "--student", f"mine={out}", "--steps", "1", "--seeds", "0", "--limit", "20"]

    def warned(name: str, *keys: str) -> str:
        assert main([*words, "--out", str(tmp_path / name), "teacher_steps=2", "resamples=2", *keys]) == 0
        printed = capsys.readouterr().err
        return printed if "other files than the bench has" in printed else ""

    assert "distilled with other files than the bench has: 'mine'; " in (text := warned("a", *network))
    assert text.endswith(f"give the bench backbone.teacher={own}\n")
    assert warned("b", f"backbone.teacher={own}") == ""
    copy = shutil.copytree(own, tmp_path / "copy")
    assert warned("copied", f"backbone.teacher={copy}") == ""
    weights = next(copy.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert "'mine'" in warned("changed", f"backbone.teacher={copy}")
    several = [f"--student=m{number}={out}" for number in range(6)]
    words += several
    assert "the bench has: 'mine', 'm0', 'm1', 'm2', 'm3' and 2 more; " in warned("several", *network)
    del words[-len(several) :]
    file = Path(out) / "student" / "config.json"
    file.write_text(file.read_text().replace(str(own), "/another/machine/teacher"))
    assert warned("c", *network) == ""


def test_arguments_win_over_config_and_config_over_defaults(table: BenchTable) -> None:
    found = bench("duo", students=["pair/first"], steps=[2], seeds=[0], out="wins", console=QUIET,
                  config={"steps": [1], "teacher_steps": 3, "device": "cpu"})  # fmt: skip
    record = json.loads(Path("wins/environment.json").read_text())
    assert record["steps"] == [2]
    assert record["teacher"]["contract"]["steps"][0] == 3
    assert {row.label for row in found.rows} >= {"mdt-vm", "teacher"}
    with pytest.raises(FewstepError, match="unknown key 'teacher_step'"):
        bench("duo", config={"teacher_step": 3})
    with pytest.raises(FewstepError, match=r"^device: got 'cud'.*auto"):
        bench("duo", device="cud", students=["pair/first"], console=QUIET)


def test_a_default_folder_is_numbered_where_it_exists() -> None:
    assert [run().folder for _ in range(3)] == [Path("runs") / f"bench-duo-both{suffix}" for suffix in ("", "-2", "-3")]
    with pytest.raises(FewstepError, match="exists"):
        run(out="runs/bench-duo-both")


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    run(out="threads")
    assert torch.get_num_threads() == before


def test_a_table_shows_itself(table: BenchTable) -> None:
    text, html = str(table), table._repr_html_()
    for part in ("duo first+second: 7 held-out samples, 2 seeds", "mine", "x flow", "gap closed"):
        assert part in text
        assert part in html
    assert repr(table) == text
    assert "\x1b" not in text
    assert html.count("<table>") == html.count("</table>") == 5  # quality, differences, time, equal cost, training
    assert table.chart().size[0] > 300
    assert [line.metric for line in table.lines if line.label == "mine"][:2] == ["size", "far"]


def test_html_is_escaped() -> None:
    table = Table(Path("x"), [], [], "<a>", [], ["1 < 2"])
    assert table._repr_html_() == "<h4>&lt;a&gt;</h4><ul><li>1 &lt; 2</li></ul>"


def test_pandas_where_it_is_there(table: BenchTable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keys: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FewstepError, match="pip install pandas"):
        table.to_pandas()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert len(frame) == len(table.rows)
    assert set(frame.columns) >= {"label", "steps", "seed", "metric", "value"}


def test_the_option_device_wins_over_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "-b", "duo", "--student", "pair/first", "--steps", "1", "--seeds", "0", "teacher_steps=2"]
    message = refusal(main([*arguments, "device=cpu", "--device", "cud", "--out", "no"]), *capsys.readouterr())
    assert message.startswith("device: got 'cud'")
    assert not Path("no").exists()
    assert main([*arguments, "device=cud", "--device", "cpu", "--out", "yes"]) == 0
    out = capsys.readouterr().out
    assert "written: yes" in out
    assert "gap closed" in out


def test_tables_in_a_pipe_are_not_folded(
    table: BenchTable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    keys = ("teacher_steps=2", "device=cpu")
    assert main(["bench", "-b", "duo", "--student", "pair/first", "--steps", "1", "--seeds", "0", *keys]) == 0
    (header,) = (line for line in capsys.readouterr().out.splitlines() if "x flow" in line and "method" in line)
    assert "x whole" in header
