"""What keeps the architecture in one piece: who imports whom, what the engine knows, what the docs show."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.plugins import hookspecs
from fewstep.plugins.registry import KINDS, registry

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "fewstep").rglob("*.py"))
PLUGINS = {path.name for path in (ROOT / "plugins").glob("*/fewstep_*") if path.is_dir()}
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("register_"))


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def offences(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [f"{p.name}: {m}" for p in paths for m in imported(p) if m.partition(".")[0] in forbidden]


def test_the_core_imports_no_plugin() -> None:
    assert len(PLUGINS) >= 4
    assert offences(CORE, PLUGINS) == []


MAY_IMPORT = {
    "fewstep_trellis": {"fewstep_shapes3d"},
    "fewstep_trellis2": {"fewstep_shapes3d", "fewstep_trellis"},
    "fewstep_kernels": {"fewstep_shapes3d"},
}


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_a_plugin_imports_the_core_and_not_another_plugin(plugin: str) -> None:
    others = PLUGINS - {plugin} - MAY_IMPORT.get(plugin, set())
    assert offences(sorted((ROOT / "plugins").glob(f"*/{plugin}/**/*.py")), others) == []


@pytest.mark.parametrize(
    "line",
    [
        "import fewstep_mdt.vm",
        "def f():\n    from fewstep_mdt.vm import VM",
        "importlib.import_module('fewstep_mdt.vm')",
    ],
)
def test_the_import_check_can_fail(line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(line)
    assert offences([tmp_path / "bad.py"], {"fewstep_mdt"}) == ["bad.py: fewstep_mdt.vm"]


def test_relative_imports_do_not_leave_the_core() -> None:
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path


def names_of_parts() -> list[str]:
    """Every registered method and backbone, and the names of the plugins that register one."""
    found = [e for kind in ("objective", "backbone") for e in registry().entries(kind)]
    return sorted({e.name for e in found} | {e.plugin for e in found})


def code_of(path: Path) -> str:
    """The code without comments and docstrings, which may cite where something comes from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def mentions(text: str, words: list[str]) -> list[str]:
    return [word for word in words if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE)]


@pytest.mark.parametrize("path", sorted((ROOT / "fewstep" / "engine").rglob("*.py")), ids=lambda p: p.name)
def test_the_engine_mentions_no_method_and_no_backbone(path: Path) -> None:
    words = names_of_parts()
    assert {"mdt-vd", "cm", "toy", "trellis"} <= set(words)
    assert mentions(code_of(path), words) == []


def test_a_mention_is_found() -> None:
    assert mentions('if method == "mdt-vd":', ["mdt-vd", "mdt"]) == ["mdt-vd"]


def test_every_hook_is_shown_in_the_docs() -> None:
    text = (ROOT / "docs" / "your-objective.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^def (register_\w+)\(", text, re.MULTILINE))
    assert shown == set(HOOKS)
    assert {f"register_{kind}s" for kind in KINDS} | {"register_commands", "register_shared_commands"} == set(HOOKS)


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_and_public_name_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_hook_says_what_it_takes() -> None:
    for name in HOOKS:
        assert inspect.getdoc(getattr(hookspecs, name))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plugins"],
        ["presets"],
        ["samplers"],
        ["metrics"],
        ["trackers"],
        ["--version"],
        *(
            [name, "--help"]
            for name in ("distill", "bench", "sample", "push", "generate", "app", "view", "export", "teach", "ops")
        ),
    ],
    ids=" ".join,
)
def test_these_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom fewstep.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "print('heavy:', [m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout


def test_every_entry_point_can_be_loaded() -> None:
    assert [f"{p.name}: {p.error}" for p in registry().plugins if p.error] == []
    assert registry().clashes() == []
    for kind in KINDS:
        for entry in registry().entries(kind):
            assert entry.load() is not None
            assert entry.summary, f"{entry.name} has no summary"


HEAVY = "torch._dynamo torch._inductor scipy transformers matplotlib sympy huggingface_hub trimesh triton open3d rembg"


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "-m", "mdt-vd", "-b", "toy", "--dry-run"],
        ["distill", "-m", "mdt-vd", "-b", "trellis", "--stage", "both", "--help-config"],
        ["students"],
        ["generate", "picture.png", "--dry-run"],
        ["sample", "no-such-student"],
    ],
    ids=" ".join,
)
def test_these_commands_import_torch_and_little_else(arguments: list[str], tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (8, 8), (200, 0, 0, 128)).save(tmp_path / "picture.png")
    code = (
        "import sys\nfrom fewstep.cli import main\nmain(sys.argv[1:])\n"
        f"print('heavy:', [m for m in '{HEAVY}'.split() if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True)
    assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr
