"""Tables and a chart from rows: ``python -m benchmarks.gpu.report ROWS.csv... [--into PAGE.md] [--chart OUT.png]``.

The table stands between the markers ``<!-- gpu-table -->`` and ``<!-- /gpu-table -->``. Where nothing was measured, it
says "not yet measured"; so does the chart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import targets
from benchmarks.gpu.rows import FAILED, MEASURED, NOT_YET, RIGHT, SKIPPED, WRONG, Row, read
from fewstep.benchmark.chart import WIDTH, drawing, style
from fewstep.errors import FewstepError, invalid

BEGIN, END = "<!-- gpu-table -->", "<!-- /gpu-table -->"
HEADER = ("what", "floor", "goal", "measured", "verdict")


def markdown(rows: Sequence[Row]) -> str:
    """The targets as a Markdown table, with device, versions, commit and date below."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    lines += [_line([cells[name] for name in HEADER]) for cells in targets.table(rows)]
    return "\n".join([*lines, "", _origin(rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _origin(rows: Sequence[Row]) -> str:
    measured = [r for r in rows if r.status == MEASURED]
    if not measured:
        return f"The GPU figures are {NOT_YET}: nothing is claimed of them."
    first = measured[0]
    counted = correctness(rows)
    return f"{first.device}, {first.versions}, commit {first.commit}, {first.date}. {counted}"


def correctness(rows: Sequence[Row]) -> str:
    """One sentence on the comparisons with the oracles."""
    checks = [r for r in rows if r.section.startswith("correct")]
    right, wrong = (sum(r.status == status for r in checks) for status in (RIGHT, WRONG))
    failed, skipped = (sum(r.status == status for r in checks) for status in (FAILED, SKIPPED))
    if not right + wrong + failed:
        return f"Correctness on a GPU: {NOT_YET}."
    where = " (interpreted: a dry run)" if all(r.device.startswith("CPU") for r in checks if r.device) else ""
    return f"Against the oracles{where}: {right} right, {wrong} wrong, {failed} failed, {skipped} skipped."


def plain(rows: Sequence[Row]) -> str:
    """The targets for a terminal: one line per target, at most 110 characters, then what went wrong."""
    lines = [f"{'target':<22}{'floor':>11}{'goal':>13}{'measured':>18}  verdict"]
    for cells in targets.table(rows):
        line = f"{cells['target']:<22}{cells['floor']:>11}{cells['goal']:>13}{cells['measured']:>18}"
        lines.append(f"{line}  {cells['verdict']}")
    bad = [r for r in rows if r.status in (WRONG, FAILED) and r.role != "peer"]
    lines += [correctness(rows), f"rows: {len(rows)}, measured: {sum(r.status == MEASURED for r in rows)}"]
    lines += [f"! {r.kernel or r.section} {r.what} {r.shape} {r.dtype}: {r.status}: {r.note}"[:160] for r in bad[:12]]
    return "\n".join(lines)


def into(path: Path, table: str) -> None:
    """Put a table between the markers of a file.

    Raises:
        FewstepError: for a file without the markers, which is left unchanged.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise invalid("--into", str(path), f"a file with a line {BEGIN} and after it a line {END}")
    path.write_text(f"{text[: begin + len(BEGIN)]}\n{table}\n{text[end:]}", encoding="utf-8")


def chart(rows: Sequence[Row], path: Path) -> None:
    """TFLOP/s of varlen self-attention by number of tokens, ours and the peers'; one panel for each of three passes."""
    passes = ("forward", "backward", "value+tangent")
    found = {what: series(rows, what) for what in passes}
    ours = {name for lines in found.values() for name, (_, own) in lines.items() if own}
    peers = {name for lines in found.values() for name in lines} - ours
    styles = {name: style(index) for index, name in enumerate([*sorted(ours), *sorted(peers)])}
    with drawing(path, WIDTH, 3.8) as figure:
        panels = figure.subplots(1, len(passes), sharex=True, sharey=True)
        for axes, (what, lines) in zip(panels, found.items(), strict=True):
            for name, (points, own) in sorted(lines.items()):
                colour, marker, dashes = styles[name]
                xs, ys = zip(*sorted(points), strict=True)
                width, front = (3.0, 3) if own else (1.2, 2)
                axes.plot(xs, ys, color=colour, marker=marker, ls=dashes, ms=5, lw=width, zorder=front, label=name)
            axes.set_title(what, loc="left")
            axes.set(xlabel="tokens", ylim=(0, None))
            axes.grid(axis="y", color="#e4e4e4", lw=0.8)
            ticks = sorted({tokens for points, _ in lines.values() for tokens, _ in points})
            if ticks:
                axes.set_xscale("log", base=2)
                axes.set_xticks(ticks, [str(tick) for tick in ticks])
            else:
                axes.text(0.5, 0.5, NOT_YET, ha="center", va="center", transform=axes.transAxes)
        panels[0].set_ylabel("TFLOP/s (higher is better)")
        entries = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        named = [f"{name} (ours)" if name in ours else name for name in entries]
        figure.legend(entries.values(), named, loc="outside lower left", ncols=5, frameon=False)
        title = "Self-attention over ragged sequences, 16 heads x 64, fp16" + _device(rows)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")


def _device(rows: Sequence[Row]) -> str:
    return next((f", {r.device}" for r in rows if r.status == MEASURED), "")


def series(rows: Sequence[Row], what: str) -> dict[str, tuple[list[tuple[int, float]], bool]]:
    """By implementation: (tokens, TFLOP/s) of self-attention on one sample, and whether it is ours."""
    found: dict[str, tuple[list[tuple[int, float]], bool]] = {}
    for r in rows:
        fits = r.section == "attention" and r.what == what and r.dtype == "float16" and r.shape.startswith("self ")
        # "own forward" divides the tangent's operations by the forward pass's time: good for a ratio, not as a rate.
        if fits and r.status == MEASURED and r.tflops is not None and r.kernel != "own forward":
            tokens = r.shape.split()[1]
            if tokens.isdigit():
                found.setdefault(r.kernel, ([], r.role == "ours"))[0].append((int(tokens), r.tflops))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.report", description="Tables and chart of the GPU benchmark.")
    parser.add_argument("rows", type=Path, nargs="+", help="rows.csv of a run, or of its parts")
    parser.add_argument("--into", type=Path, action="append", default=[], help="file with the markers; repeatable")
    parser.add_argument("--chart", type=Path, help="PNG to write")
    parser.add_argument("--targets", type=Path, help="CSV of the targets to write")
    given = parser.parse_args(arguments)
    try:
        rows = [row for path in given.rows for row in read(path)]
        for path in given.into:
            into(path, markdown(rows))
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.chart:
        chart(rows, given.chart)
    if given.targets:
        targets.write(given.targets, rows)
    print(plain(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
