"""The docs are true: the plugin whose files the pages show is put together, installed, tested and used."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, fake_plugin

from fewstep import metrics
from fewstep.core.batch import Batch
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.objective import NetSpec, Objective, Phase, Step
from fewstep.plugins.registry import registry
from fewstep.testing import check_objective

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS / f"{name}.md" for name in ("your-objective", "your-backbone", "your-data", "gpus", "worked-examples")]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
README_IMPORTS = """
import torch
from fewstep.core import Objective, Strict, TimeSampler

class MyConfig(Strict):
    t: TimeSampler = TimeSampler()

"""
FILE = re.compile(r"^`(fewstep_demo/[\w./-]+)`\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The files of the plugin ``fewstep-demo`` as the pages show them, the module with the hooks first."""
    found = dict(FILE.findall(TEXT))
    assert next(iter(found)) == "fewstep_demo/plugin.py"
    return {**found, "fewstep_demo/__init__.py": ""}


@pytest.fixture
def demo(cli: Cli, site: Path) -> Cli:
    cli.paths.append(fake_plugin(site, "fewstep-demo", files()))
    return cli


def test_no_python_block_is_left_out() -> None:
    assert TEXT.count("```python") == sum(name.endswith(".py") for name in files()) - 1


def test_what_the_page_registers_is_listed(demo: Cli) -> None:
    out = demo.works("plugins")
    for name in ("demo-l1", "demo-points", "demo-midpoint", "demo-attention", "demo-print"):
        assert name in out
    assert "commands: generate (demo), demo" in out
    assert "broken" not in out
    out = demo.works("distill", "--method", "demo-both", "--backbone", "demo", "--dry-run")
    for value in ("objective.weights.cm", "objective.starts.cm", "objective.demo-l1.weight"):
        assert re.search(rf"{value}.*preset default \(fewstep_demo\)", out)
    assert demo.works("demo", "--name", "Ada") == "hello, Ada\n"
    assert demo.works("generate", "--backbone", "demo", "hello", "--louder") == "hello!\n"


def commands(page: str) -> list[list[str]]:
    """The ``fewstep`` commands of a page, as words; a line may go on behind a backslash."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("fewstep ")]


def test_the_pages_own_tests_pass(site: Path, demo: Cli) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:dash", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site, timeout=300, check=False)
    assert "8 passed" in done.stdout, done.stdout + done.stderr


def test_the_pages_commands_run(demo: Cli) -> None:
    lines = commands("your-objective")
    assert [words[0] for words in lines] == ["distill", "bench", "sample"]
    for words in lines:
        extra = {"distill": ["--tracker", "demo-print"], "bench": ["--limit", "8", "--seeds", "0"]}.get(words[0], [])
        out = demo.works(*words, *extra)
        if words[0] == "distill":
            assert "tracking run" in out
    assert (demo.folder / "samples.txt").read_text().startswith("samples: [")


def test_the_commands_of_the_worked_examples_run(site: Path, demo: Cli) -> None:
    lines = commands("worked-examples")
    assert [words[0] for words in lines] == ["distill", "teach", "distill", "bench", "sample"]
    short = {"teach": ["train.steps=3"], "distill": ["train.steps=3"], "bench": ["--seeds", "0"]}
    code = f"""
from fewstep.cli import main
for words in {[[*words, *short.get(words[0], [])] for words in lines]!r}:
    assert main(words) == 0, words
"""
    command, paths = [sys.executable, "-c", code], os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=demo.folder, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (demo.folder / "digits.png").is_file()


def test_the_kernel_of_the_page(site: Path, demo: Cli) -> None:
    code = """
import torch
from fewstep.ops import attention, explain
from fewstep.plugins.registry import registry
q = torch.randn(2, 3, 8, 4)
assert explain("attention", q, q, q)["demo-attention"] == "8 heads, made for at most 4"
kernel = registry().get("kernel", "demo-attention").load()
q = q[:, :, :2]
assert kernel.supports(q, q, q) is None
assert torch.allclose(kernel.run(q, q, q), attention(q, q, q), atol=1e-6)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=site, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / "pictures" / "chair.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(DOCS / "python.md"):
        exec(block, names)
    assert len(names["run"].metrics()) == 4
    assert all((tmp_path / name).is_file() for name in ("samples.png", "chair.glb", "runs/bench/table.md"))


def test_the_objective_of_the_readme_works() -> None:
    (block,) = blocks(DOCS.parent / "README.md")
    names: dict[str, Any] = {}
    exec(compile(README_IMPORTS + block, "README.md", "exec", dont_inherit=True), names)
    check_objective(names["FlowRegression"])


def public(cls: type) -> set[str]:
    """What an instance offers: methods, properties, fields, attributes that ``__init__`` sets."""
    set_at_start = set(re.findall(r"self\.(\w+)", inspect.getsource(cls.__init__))) if cls is Step else set()
    return {name for name in {*vars(cls), *getattr(cls, "__annotations__", {}), *set_at_start} if name[0] != "_"}


def test_the_vocabulary_is_complete() -> None:
    text = (DOCS / "vocabulary.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[`.](\w+)", text))
    for cls in (Batch, Dense, Interpolant, NetSpec, Objective, Phase, Step):
        lost = public(cls) - named - {"config", "tangents"}
        assert not lost, f"{cls.__name__}: {lost}"
    for kind in ("sampler", "tracker"):
        own = {entry.name for entry in registry().entries(kind) if entry.distribution in ("", "fewstep")}
        assert not own - named, f"{kind}: {own - named}"
    assert not set(metrics.__all__) - named


def test_paths_and_links_of_the_texts_exist() -> None:
    root = DOCS.parent
    texts = [*DOCS.rglob("*.md"), root / "README.md", root / "CONTRIBUTING.md", root / "ATTRIBUTION.md"]
    for text in texts:
        content = text.read_text(encoding="utf-8")
        paths = re.findall(r"`((?:fewstep|plugins|docs|tests|benchmarks)/[\w./-]*\w/?)`", content)
        links = re.findall(r"\]\((?!https?:)([^)#]+)", content)
        lost = [path for path in paths if not (root / path).exists()]
        lost += [link for link in links if not (text.parent / link).exists()]
        assert not lost, f"{text.relative_to(root)}: {lost}"


def test_nothing_tells_to_install_from_a_registry() -> None:
    """There is no release there; ``fewstep.errors.install`` says how an extra is installed."""
    root = DOCS.parent
    texts = [*root.glob("*.md"), *DOCS.rglob("*.md"), *root.glob("fewstep/**/*.py"), *root.glob("plugins/**/*.py")]
    told = [str(path) for path in texts if re.search(r"pip install '?fewstep\b", path.read_text(encoding="utf-8"))]
    assert not told
