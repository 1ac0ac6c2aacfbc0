"""The machine and its roofline, by matrix products of 8192^3 and a copy."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, name_of
from benchmarks.gpu.rows import MEASURED, Row
from benchmarks.gpu.work import Roof, gbs, tflops

ROOT = Path(__file__).parents[3]
PACKAGES = ("torch", "triton", "numpy", "fa3-fwd", "tokenspeed-fa3", "spconv-triton", "jvp-flash-attention")
QUERY = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,memory.total"
SECTION, EDGE, COPIED = "environment", 8192, 2**32


def nvidia() -> dict[str, str]:
    """What the driver reports about the first GPU; empty if there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return dict(zip(QUERY.split(","), (v.strip() for v in found.stdout.split(",")), strict=False))


def commit() -> str:
    """FEWSTEP_COMMIT if set (a copied tree has no history), else git's; changed results do not make a tree dirty."""
    if given := os.environ.get("FEWSTEP_COMMIT"):
        return given
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (_git("rev-parse", "--short=10", "HEAD") or "unknown") + "-dirty" * bool(changed)


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the installed packages."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or "CPU (dry run)"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (dry run)"


def everything(device: torch.device) -> dict[str, Any]:
    """The environment, as written to environment.json."""
    found: dict[str, Any] = {"device": device_name(device), "commit": commit(), "versions": versions()}
    found["driver"], found["cpus"] = nvidia(), os.cpu_count()
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        found["properties"] = {"multiprocessors": p.multi_processor_count, "memory": p.total_memory}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def run(bench: Bench) -> None:
    """Measure the roofline, and write environment.json beside the rows."""
    text = json.dumps(everything(bench.device), indent=2)
    (bench.book.path.parent / "environment.json").write_text(text + "\n", encoding="utf-8")
    edge = bench.sizes(EDGE, 64)
    for dtype in bench.sizes((torch.float16, torch.bfloat16), (torch.float32,)):
        a, b = (bench.randn(edge, edge, dtype=dtype) for _ in range(2))
        found = bench.clock.in_turn({"matmul": partial(torch.matmul, a, b)})["matmul"]
        rate = tflops(2.0 * edge**3, found.median)
        shape = f"{edge}^3"
        bench.book.add(_row("matmul", shape, name_of(dtype), found, tflops=rate))
    size = bench.sizes(COPIED, 2**16)
    source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_(generator=bench.generator)
    target = torch.empty_like(source)
    found = bench.clock.in_turn({"copy": lambda: target.copy_(source)})["copy"]
    words = f"{size / 2**30:.3g} GiB"
    bench.book.add(_row("copy", words, "uint8", found, gbs=gbs(2.0 * size, found.median)))


def _row(op: str, shape: str, dtype: str, timing: Any, **rates: float | None) -> Row:
    times = {"median_ms": timing.median, "p20_ms": timing.p20, "p80_ms": timing.p80}
    return Row(SECTION, op, "roofline", shape, dtype, "torch", "plain", **times, **rates, status=MEASURED)  # type: ignore[arg-type]


def roof(rows: list[Row]) -> Roof:
    """The roofline that this run measured."""
    mine = [r for r in rows if r.section == SECTION and r.status == MEASURED]
    rates = {r.dtype: r.tflops for r in mine if r.op == "matmul" and r.tflops}
    return Roof(rates, next((r.gbs for r in mine if r.op == "copy" and r.gbs), 0.0))
