"""``fewstep ops``: every op and its kernels, what each can do, and which one is chosen on this machine and why."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from fewstep.console import Console
from fewstep.errors import unknown

if TYPE_CHECKING:
    from fewstep.ops.example import Draw

TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
NEEDS = ("forward", "backward", "jvp")
OFF = "left out by FEWSTEP_OPS"


def ops(
    device: str = typer.Option("auto", help="auto (CUDA if available), cpu, cuda, cuda:1, ..."),
    dtype: str | None = typer.Option(None, help="fp16, bf16 or fp32; by default fp16 on CUDA, fp32 on a CPU."),
    need: str = typer.Option("forward", help="What a call needs: forward, backward or jvp."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show every op's kernels, what they can do, and which one serves a call on this machine."""
    rows = _rows(device, dtype, _known("--need", need, NEEDS))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _print(rows)


def _known(option: str, got: str, accepted: Any) -> str:
    if got not in accepted:
        raise unknown(option, got, accepted)
    return got


def _rows(device: str, dtype: str | None, need: str) -> list[dict[str, Any]]:
    """One row per kernel: op, kernel, backend, what it provides, whether it is chosen, and if not, why."""
    import torch

    from fewstep.engine.device import pick_device
    from fewstep.ops.example import Draw
    from fewstep.ops.table import table

    where = pick_device(device, "--device")
    word = _known("--dtype", dtype or ("fp16" if where.type == "cuda" else "fp32"), TYPES)
    draw = Draw(where, getattr(torch, TYPES[word]), need)
    found = []
    with torch.autograd.forward_ad.dual_level() if need == "jvp" else nullcontext():
        for op in sorted(table()):
            found += _of(op, draw)
    return found


def _of(op: str, draw: Draw) -> list[dict[str, Any]]:
    from fewstep.ops.table import CAPABILITIES, kernels, table

    known = table()[op].values()
    example = next((k.example for k in known if k.example is not None), None)
    args = None if example is None else example(draw)
    tried, rows, served = kernels(op), [], False
    left_out = sorted((k for k in known if k not in tried), key=lambda k: -k.priority)
    for kernel in [*tried, *left_out]:
        reason = OFF if kernel in left_out else "no example call of this op" if args is None else kernel.supports(*args)
        rows.append(
            {
                "op": op,
                "kernel": kernel.name,
                "backend": kernel.backend,
                "provides": [c for c in CAPABILITIES if c in kernel.provides],
                "chosen": reason is None and not served,
                "reason": reason or ("another one comes first" if served else ""),
            }
        )
        served = served or reason is None
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    from fewstep.ops.table import ENV, forced

    table = Table(title="ops (f forward, b backward, j forward-mode)", title_justify="left")
    for name in ("op", "kernel", "can", "chosen"):
        table.add_column(name, no_wrap=True)
    table.add_column("why not", overflow="fold")
    last = None
    for row in rows:
        op = row["op"] if row["op"] != last else ""
        cells = (op, row["kernel"], "".join(c[0] for c in row["provides"]), "yes" if row["chosen"] else "")
        table.add_row(*map(Text, (*cells, row["reason"])))
        last = row["op"]
    console = Console()
    console.print(table)
    if forced():
        console.print(Text(f"{ENV}={forced()}"))
