"""Ctrl-C, SIGTERM and SIGHUP end any work in order; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fewstep
from fewstep.cli import main
from fewstep.engine.gradients import Gradients
from fewstep.interrupts import SIGNALS, Interrupted, deferred, handled

QUICK = ("train.steps=6", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "train.threads=1")
RUN = ("distill", "-m", "mdt-vm", "-b", "toy", "--out", "a run", *QUICK)
NUMBERS = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The handlers of a process that was started in the foreground, whatever the tests were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def after(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Have ``act`` called in the middle of the iteration that follows ``step``."""
    terms = Gradients.terms

    def acting(self: Gradients, phase: object, batch: object, one: object) -> object:
        if self.run.step == step:
            act()
        return terms(self, phase, batch, one)  # type: ignore[arg-type]

    monkeypatch.setattr(Gradients, "terms", acting)


@NUMBERS
def test_a_signal_amid_training_leaves_a_checkpoint_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    after(monkeypatch, 2, lambda: kill(number))
    before = [signal.getsignal(one) for one in SIGNALS]
    assert main([*RUN]) == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == before
    out, err = capsys.readouterr()
    assert "stopped after step 3. The checkpoint of step 3 is kept" in out
    assert "train.lr" not in out
    again = f"fewstep distill -m mdt-vm -b toy --out 'a run' {' '.join(QUICK)} --resume"
    assert err == f"interrupted; to go on: {again}\n"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--resume"]) == 0


@NUMBERS
def test_any_other_command_says_how_to_start_again(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fewstep.api.loading.load", lambda *_, **__: kill(number))
    assert main(["sample", "a student", "-o", "x.png"]) == 128 + number
    assert capsys.readouterr().err == "interrupted; to start again: fewstep sample 'a student' -o x.png\n"


def test_a_signal_while_the_commands_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "fewstep.cli.app":
                kill(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "fewstep.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert main(["plugins"]) == 130
    assert capsys.readouterr().err == "interrupted; to start again: fewstep plugins\n"


def test_a_second_signal_is_deadly() -> None:
    with handled():
        with pytest.raises(Interrupted):
            kill(signal.SIGTERM)
        assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_deferred_signal_is_looked_at_in_time() -> None:
    with handled(), deferred() as interrupted:
        assert interrupted() is None
        kill(signal.SIGTERM)
        found = interrupted()
        assert found is not None
        assert found.exit_code == 143


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            kill(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_api_and_other_threads_install_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = [signal.getsignal(number) for number in SIGNALS], []
    after(monkeypatch, 1, lambda: seen.append([signal.getsignal(number) for number in SIGNALS]))
    fewstep.distill("mdt-vm", "toy", overrides=QUICK, out=tmp_path / "run")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert seen == [before] == [[signal.getsignal(number) for number in SIGNALS]]
