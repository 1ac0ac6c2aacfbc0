"""The notebooks: their cells run in order, and no outputs are stored."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell; the value of its last expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_is_stored_but_the_source(notebook: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_of(notebook))


def test_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (notebook,) = NOTEBOOKS
    shown = [run("".join(cell["source"]), names) for cell in code_of(notebook)]
    assert all(value is not None for value in shown), "each cell ends with something to see"
    assert names["samples"].shape == (512, 2)
    assert (tmp_path / "chair.glb").stat().st_size > 100_000
    rows = {(row.label, row.steps): row.value for row in names["table"].rows if row.metric == "sliced_w2"}
    assert rows["mine", 1] < rows["undistilled", 1]
