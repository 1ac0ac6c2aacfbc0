"""``fewstep ops``: what is chosen, why the others are not, without Triton too; and every command without Triton."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import install
from fewstep.ops.calls import dispatch
from fewstep.ops.example import Draw
from fewstep.ops.table import table

BLOCKED = """
import importlib.abc, importlib.util, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

sys.meta_path.insert(0, Blocked())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else found(name, *a)
"""


def rows(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["op"], row["kernel"]): row for row in json.loads(text)}


def test_a_cpu_takes_torch_and_says_why_not_triton(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_OPS", raising=False)
    found = rows(cli.works("ops", "--device", "cpu", "--json"))
    assert found["varlen_attention", "grouped-sdpa"]["chosen"]
    assert found["submanifold_conv", "by-offset"]["chosen"]
    assert found["varlen_attention", "reference"]["reason"] == "another one comes first"
    triton = [row for row in found.values() if row["backend"] == "triton"]
    assert len(triton) >= 7
    assert all("needs a GPU" in row["reason"] or "not installed" in row["reason"] for row in triton)
    assert all(sum(row["chosen"] for row in found.values() if row["op"] == op) == 1 for op, _ in found)


def test_what_is_needed_changes_the_choice(cli: Cli) -> None:
    found = rows(cli.works("ops", "--device", "cpu", "--need", "jvp", "--json"))
    assert found["varlen_attention", "reference"]["chosen"]
    assert "carries a tangent" in found["varlen_attention", "grouped-sdpa"]["reason"]
    assert found["submanifold_conv", "by-offset"]["chosen"]


def test_a_forced_backend_is_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OPS", "reference")
    text = cli.works("ops", "--device", "cpu")
    assert "FEWSTEP_OPS=reference" in text
    assert "left out by FEWSTEP_OPS" in text


def test_the_interpreter_can_be_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("FEWSTEP_OPS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = rows(cli.works("ops", "--device", "cpu", "--json"))
    chosen = {row["op"]: row["backend"] for row in found.values() if row["chosen"]}
    assert chosen["varlen_attention"] == chosen["windowed_attention"] == chosen["submanifold_conv"] == "triton"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "cpuu", "--device: got 'cpuu'; accepted: auto, cpu, or a device of this machine"),
        ("--dtype", "fp8", "unknown --dtype 'fp8': accepted are bf16, fp16, fp32"),
        ("--need", "jpv", "unknown --need 'jpv': accepted are backward, forward, jvp; did you mean 'jvp'?"),
    ],
)
def test_bad_options(cli: Cli, option: str, value: str, message: str) -> None:
    assert cli.refuses("ops", option, value).startswith(message)


@pytest.mark.parametrize("need", ["forward", "backward", "jvp"])
@pytest.mark.parametrize("op", sorted(table()))
def test_an_example_is_on_the_device_asked_for(op: str, need: str) -> None:
    """Stands in for a GPU: whatever does not name its device lands on the default one, which is "meta" here."""
    example = next(k.example for k in table()[op].values() if k.example is not None)
    with torch.autograd.forward_ad.dual_level(), torch.device("meta"):
        args = example(Draw(torch.device("cpu"), torch.float32, need))
        assert {x.device.type for x in tensors_of(args)} == {"cpu"}
        found = dispatch(op, *args).run(*args)
    assert {x.device.type for x in tensors_of(found if isinstance(found, tuple) else (found,))} == {"cpu"}


def tensors_of(values: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among the values, those of layouts included."""
    found = []
    for value in values:
        parts = (value.cu_seqlens, value.coords, value.index) if isinstance(value, Packed) else (value,)
        found += [part for part in parts if isinstance(part, Tensor)]
    return found


def test_a_bad_backend_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OPS", "tritonn")
    assert "did you mean 'triton'" in cli.refuses("ops")


@pytest.mark.parametrize("command", [["ops", "--json"], ["--help"], ["plugins"], ["distill", "--help"]])
def test_commands_work_without_triton(command: list[str], tmp_path: Path) -> None:
    script = f"{BLOCKED}\nfrom fewstep.cli import main\nsys.argv = ['fewstep', *{command!r}]\nmain()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if command[0] == "ops":
        triton = [row for row in json.loads(done.stdout) if row["backend"] == "triton"]
        assert len(triton) >= 7
        assert all(f"Triton is not installed ({install('kernels')})" in row["reason"] for row in triton)


def test_a_model_runs_without_triton(tmp_path: Path) -> None:
    script = f"""{BLOCKED}
import torch
from fewstep.core.layout import Packed
from fewstep_trellis.models import SLatFlowModel
model = SLatFlowModel(8, 4, 32, 16, 4, 1, 2, io_block_channels=[16])
layout = Packed.of_lengths([8], torch.cartesian_prod(*[torch.arange(2)] * 3))
x = torch.zeros(8, 4).requires_grad_()
model(x, torch.ones(1), torch.zeros(1, 5, 16), layout).sum().backward()
assert "triton" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
