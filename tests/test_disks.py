"""A disk that is full, read-only or without locks: one message, nothing half written, and a run that can go on."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import engine_helpers
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import fewstep.files
from fewstep.benchmark.rows import Row, write_csv
from fewstep.cli import main
from fewstep.engine import session
from fewstep.engine.folder import locked
from fewstep.engine.trackers import JsonLines
from fewstep.errors import FewstepError
from fewstep.files import LineFile, Unwritable, check_place, new_file, new_folder, write_json

RUN = ["distill", "-m", "mdt-vd", "-b", "toy", "train.steps=3", "train.batch_size=4", "train.checkpoint_every=1"]
FULL = OSError(errno.ENOSPC, "No space left on device")


def by_open(path: Path) -> None:
    raise FULL


def by_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path / "missing" / "a")  # its error of an unwritable path is no OSError


def by_torch(path: Path) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def by_numpy(path: Path) -> None:
    try:
        raise FULL
    except OSError as error:
        raise ValueError("Can't close the ZIP file while there is an open writing handle on it") from error


@pytest.mark.parametrize("refuse", [by_open, by_safetensors, by_torch, by_numpy])
@pytest.mark.parametrize("place", [new_file, new_folder])
def test_every_writers_refusal_is_one_message_and_leaves_nothing(
    tmp_path: Path, place: Any, refuse: Callable[[Path], None]
) -> None:
    target = tmp_path / "made" / "for" / "it.npz"
    expected = r"it\.npz: cannot be written: (No space|No such file|Not a directory|the file is incomplete)"
    with pytest.raises(Unwritable, match=expected), place(target) as temp:
        refuse(temp)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), new_file(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(FewstepError, match=r"^mine$"), new_folder(tmp_path / "a"):
        raise FewstepError("mine")


def test_a_file_below_a_new_folder_is_named_by_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable) as caught, new_folder(tmp_path / "student") as temp:
        write_json(temp / ".." / "file" / "b", 1)
    assert str(caught.value) == f"{tmp_path / 'student'}: cannot be written: {tmp_path / 'file'} is not a folder"


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        with new_folder(tmp_path / "folder") as temp:
            save_file({"a": torch.zeros(2)}, temp / "a.safetensors")  # makes its files 0600
            write_json(temp / "b.json", 1)
        with new_file(tmp_path / "c.safetensors") as temp:
            save_file({"a": torch.zeros(2)}, temp)
        LineFile(tmp_path / "d.jsonl").close()
        assert main([*RUN, "--out", str(tmp_path / "run")]) == 0
        assert main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "s.png")]) == 0
    finally:
        os.umask(old)
    found = list(tmp_path.rglob("*"))
    assert len(found) > 15
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, (path, oct(mode))


def test_a_refused_line_leaves_the_lines_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LineFile(tmp_path / "a.csv")
    file.write("one\n")
    whole, calls = file.file, []

    class Half:
        """Writes two bytes, then has no room."""

        def write(self, data: memoryview) -> int:
            calls.append(1)
            if len(calls) > 1:
                raise FULL
            return whole.write(data[:2])

        def tell(self) -> int:
            return whole.tell()

        def truncate(self, size: int) -> None:
            whole.truncate(size)

    file.file = Half()  # type: ignore[assignment]
    with pytest.raises(Unwritable, match=r"a\.csv: cannot be written: No space"):
        file.write("two\n")
    assert (tmp_path / "a.csv").read_text() == "one\n"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    for name, reason in (("file/below/it", "is not a folder"), ("link", "does not exist"), ("x" * 300, "too long")):
        with pytest.raises(FewstepError, match=rf"^--out: got .*accepted: a path to write to \(.*{reason}"):
            check_place("--out", tmp_path / name)
    check_place("--out", tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


COMMANDS = {
    "distill": RUN,
    "distill-stages": ["distill", "-m", "mdt-vd", "-b", "trellis", "--stage", "both"],
    "bench": ["bench", "-b", "toy"],
    "sample": ["sample", "trellis/mdt-vd"],
    "export": ["export", "mdt-vd"],
    "teach": ["teach"],
    "generate": ["generate", "chair.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_disk_is_refused_before_any_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (8, 8), "red").save("chair.png")
    monkeypatch.setattr(fewstep.files.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(torch.nn.Module, "__init__", work)
    assert main([*COMMANDS[command], "--out", str(tmp_path / "o")]) == 2
    assert "a path to write to (Read-only file system)" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@contextmanager
def no_room(monkeypatch: pytest.MonkeyPatch, when: Callable[[Path], bool]) -> Iterator[None]:
    """``safetensors`` finds the disk full where ``when`` says so."""

    def save(tensors: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        if when(Path(path)):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        for module in ("fewstep.engine.store", "fewstep.core.backbone", "fewstep_trellis.checkpoint"):
            patch.setattr(f"{module}.save_file", save)
        yield


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, saved = tmp_path / "run", list[Path]()

    def second(path: Path) -> bool:
        saved.append(path)
        return len(saved) == 2

    with no_room(monkeypatch, second):
        assert main([*RUN, "--out", str(out)]) == 2
    text = capsys.readouterr().err
    assert f"{out}/checkpoints/step-00000002: cannot be written: No space left on device" in text
    assert "checkpoint of step 1 is kept" in text
    assert "--resume goes on from it" in text
    assert not list(out.rglob(".tmp-*"))
    assert main([*RUN, "--out", str(out), "--resume"]) == 0
    assert (out / "student" / "config.json").is_file()


def test_a_full_disk_at_the_student_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with no_room(monkeypatch, lambda path: path.name == "model.safetensors"):
        assert main([*RUN, "--out", str(out)]) == 2
    text = capsys.readouterr().err
    assert f"{out}/student: cannot be written: No space left on device" in text
    assert "--resume goes on from it" in text
    assert not (out / "student").exists()
    assert main([*RUN, "--out", str(out), "--resume"]) == 0


@pytest.mark.parametrize("path", ["s.png", "folder"])
def test_a_sample_on_a_full_disk_leaves_nothing_that_blocks_a_retry(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.figure import Figure

    run = tmp_path / "run"
    assert main([*RUN, "--out", str(run)]) == 0
    words = ["sample", str(run), "--out", str(tmp_path / path), "-n", "4"]
    with monkeypatch.context() as patch:

        def half(self: Figure, target: Path, **_: object) -> None:
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Figure, "savefig", half)
        assert main(words) == 2
    assert f"{tmp_path / path}: cannot be written: No space left on device" in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["run"]
    assert main(words) == 0


BENCH = ["bench", "-b", "toy", "--steps", "1", "--seeds", "0", "--limit", "8", "teacher_steps=2", "--methods", ""]


def bench(tmp_path: Path) -> list[str]:
    run = tmp_path / "run"
    if not run.exists():
        assert main([*RUN, "--out", str(run)]) == 0
    return [*BENCH[:-2], "--student", str(run), "--out", str(tmp_path / "b")]


def test_a_bench_on_a_full_disk_keeps_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, write = bench(tmp_path), LineFile.write

    def five(self: LineFile, text: str) -> None:
        lines = self.path.read_text().count("\n") if self.path.name == "rows.csv" else 0
        if lines >= 5:
            raise Unwritable(self.path, "No space left on device")
        write(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "write", five)
        assert main(words) == 2
    text = capsys.readouterr().err
    assert "rows.csv: cannot be written: No space left on device; the rows before it are kept, --resume goes on" in text
    rows = (tmp_path / "b" / "rows.csv").read_text()
    assert rows.count("\n") == 5
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "b" / "sheet.png").is_file()


def test_a_bench_whose_chart_finds_no_room_shows_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fewstep.benchmark.report.chart", refuse)
    assert main(bench(tmp_path)) == 2
    found = capsys.readouterr()
    assert "chart.png: cannot be written: No space left on device; every measurement is in" in found.err
    assert "teacher" in found.out
    assert not (tmp_path / "b" / "chart.png").exists()
    assert (tmp_path / "b" / "rows.csv").read_text().count("\n") > 5


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EINVAL", "ENOSYS", "EBADF"])
def test_a_file_system_without_locks_is_no_second_process(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="takes no lock .*do not start a second run there"), locked(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_leaves_no_folder(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    engine_helpers.install()
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=["train.steps=1", "train.device=cpu"])
    for _ in range(2):  # the second try is told the same
        with pytest.raises(
            FewstepError, match=rf"{tracker} is not installed; to install it: pip install -e '\.\[trackers\]'"
        ):
            session.start(resolved, tmp_path / "run", False, quiet(), trackers=[tracker])
        assert not (tmp_path / "run").exists()


def test_a_run_that_fails_before_its_first_step_leaves_no_folder_and_an_interrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_helpers.install()
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=["train.steps=1", "train.device=cpu"])

    def ended(error: BaseException) -> Callable[..., None]:
        def train(*_: object, **__: object) -> None:
            raise error

        return train

    for error, left in ((FewstepError("no"), False), (KeyboardInterrupt(), True)):
        monkeypatch.setattr(session.Trainer, "train", ended(error))
        with pytest.raises(type(error)):
            session.start(resolved, tmp_path / "run", False, quiet())
        assert (tmp_path / "run").exists() is left


def test_a_tracker_on_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_helpers.install()
    keys = ["train.steps=3", "train.log_every=1", "train.checkpoint_every=1", "train.device=cpu"]
    resolved = engine_helpers.resolve("tiny-regress", "tiny", layers=keys)
    log = JsonLines.log

    def refuse(self: JsonLines, row: Any) -> None:
        if row["step"] == 2:
            raise FULL
        log(self, row)

    monkeypatch.setattr(JsonLines, "log", refuse)
    with pytest.raises(FewstepError, match=r"run: cannot be written: No space.*checkpoint of step 1 is kept"):
        session.start(resolved, tmp_path / "run", False, quiet())


def test_results_of_every_kind_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep_shapes3d.export import write_npz

    def half(file: Any, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(Unwritable, match=r"a\.npz: cannot be written: No space"):
        write_npz({"a": torch.zeros(2)}, tmp_path / "new" / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_bench_that_goes_on_are_never_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, names = tmp_path / "rows.csv", [field.name for field in fields(Row)]
    row = dict.fromkeys(names, "x")
    write_csv(path, Row, [row])
    before = path.read_text()
    assert before.count("\n") == 2
    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "write", lambda self, text: refuse())
        patch.setattr(Path, "write_bytes", lambda self, content: refuse())
        with pytest.raises(Unwritable):
            write_csv(path, Row, [row], kept=[row])
    assert path.read_text() == before
    write_csv(path, Row, [row], kept=[row])
    assert path.read_text() == before + before.splitlines()[1] + "\n"


def refuse() -> int:
    raise FULL
