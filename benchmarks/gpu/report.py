"""Rows to tables and a chart: ``python -m benchmarks.gpu.report ROWS.csv... [--into PAGE.md] [--chart OUT.png]``.

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
from fewstep.errors import FewstepError, invalid

BEGIN, END = "<!-- gpu-table -->", "<!-- /gpu-table -->"
HEADER = ("what", "floor", "goal", "measured", "verdict")


def markdown(rows: Sequence[Row]) -> str:
    """The targets as a markdown table, with what it was measured on below."""
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
    """The same for a terminal: one line a target, at most 110 characters, then what went wrong."""
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
        FewstepError: a file without the markers; it stays as it is.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise invalid("--into", str(path), f"a file with a line {BEGIN} and after it a line {END}")
    path.write_text(f"{text[: begin + len(BEGIN)]}\n{table}\n{text[end:]}", encoding="utf-8")


def chart(rows: Sequence[Row], path: Path) -> None:
    """TFLOP/s by tokens, ours and the peers', of varlen self-attention; a panel for each of the three passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    passes = ("forward", "backward", "value+tangent")
    figure, axes = pyplot.subplots(1, len(passes), figsize=(12, 3.6), sharex=True, layout="constrained")
    for axis, what in zip(axes, passes, strict=True):
        lines = series(rows, what)
        for name, (points, ours) in sorted(lines.items()):
            xs, ys = zip(*sorted(points), strict=True)
            axis.plot(xs, ys, marker="o", label=name, linewidth=2.5 if ours else 1.0, zorder=3 if ours else 2)
        axis.set(title=what, xlabel="tokens", ylim=(0, None))
        if lines:
            axis.set_xscale("log", base=2)
            axis.legend(fontsize=7)
        else:
            axis.text(0.5, 0.5, NOT_YET, ha="center", va="center", transform=axis.transAxes)
    axes[0].set_ylabel("TFLOP/s")
    figure.suptitle("varlen self-attention, 16 heads x 64, fp16" + _device(rows), fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _device(rows: Sequence[Row]) -> str:
    return next((f", {r.device}" for r in rows if r.status == MEASURED), "")


def series(rows: Sequence[Row], what: str) -> dict[str, tuple[list[tuple[int, float]], bool]]:
    """By implementation: (tokens, TFLOP/s) of self-attention on one sample, and whether it is ours."""
    found: dict[str, tuple[list[tuple[int, float]], bool]] = {}
    for r in rows:
        fits = r.section == "attention" and r.what == what and r.dtype == "float16" and r.shape.startswith("self ")
        # "own forward" is the forward pass's time under the tangent's operations: a ratio, not a rate.
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
