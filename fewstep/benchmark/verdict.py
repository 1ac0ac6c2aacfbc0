"""The verdict that ends every bench: a sentence for each student in its fewest steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fewstep.benchmark.comparisons import LEVEL, p_value
from fewstep.benchmark.differences import Difference
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import GAP, NON_FINITE, Line
from fewstep.benchmark.summary import by_cell
from fewstep.benchmark.tables import mean, resolved, share
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import fixed, number


def verdicts(lines: Sequence[Line], suite: Suite, differences: Sequence[Difference] = ()) -> list[str]:
    """``cm, 1 step: 63 % of the gap to the teacher closed (±26), 51 times faster flow; frechet 12 higher than mdt-vd
    (±5, p 0.01), worse.`` for each student."""
    cells = by_cell(lines)
    fewest: dict[str, int] = {}
    for label, steps in cells:
        if label not in RESERVED:
            fewest[label] = min(steps, fewest.get(label, steps))
    if fewest:
        told = {(one.label, one.steps): one for one in differences
                if one.metric == suite.headline and one.against != UNDISTILLED}  # fmt: skip
        return [
            f"{_sentence(cells[label, steps], suite, steps)}{_against(told.get((label, steps)))}."
            for label, steps in fewest.items()
        ]
    few = min((steps for label, steps in cells if label == UNDISTILLED), default=0)
    teacher = next((found for (label, _), found in cells.items() if label == TEACHER), {})
    plain = cells.get((UNDISTILLED, few), {})
    if suite.headline not in teacher or suite.headline not in plain:
        return ["No student was measured."]
    better, words = mean(teacher[suite.headline]), suite.in_words(suite.headline)
    return [f"No student was measured. {words}: the teacher {better}, undistilled in {number_of(few, 'step')} "
            f"{mean(plain[suite.headline])}."]  # fmt: skip


def _sentence(found: dict[str, Line], suite: Suite, steps: int) -> str:
    label = next(iter(found.values())).label
    speed = f", {_faster(found['speedup_flow'].value)} flow" if "speedup_flow" in found else ""
    return f"{label}, {number_of(steps, 'step')}: {_closed(found, suite)}{speed}"


def _against(one: Difference | None) -> str:
    """How the method compares with the reference method."""
    if one is None or not math.isfinite(one.difference):
        return ""
    side = "higher" if one.difference > 0 else "lower"
    text = f"; {one.metric} {number(abs(one.difference))} {side} than {one.against}"
    if one.half is None or one.p_holm is None:
        return text
    judged = "no difference is shown" if one.p_holm >= LEVEL else "better" if one.better else "worse"
    return f"{text} (±{number(one.half, 2)}, p {p_value(one.p_holm)}), {judged}"


def _closed(found: dict[str, Line], suite: Suite) -> str:
    line = found.get(GAP + suite.headline)
    if NON_FINITE in found:
        return f"{fixed(100 * found[NON_FINITE].value, 0)} % of the samples are not finite"
    if suite.headline not in found:
        return f"{suite.in_words(suite.headline)} was not measured"
    if line is None:
        return f"no gap to close, undistilled is no worse than the teacher ({suite.in_words(suite.headline)})"
    part = "of the gap to the teacher closed"
    if not resolved(line):
        return f"the share {part} is not resolved by {number_of(line.count, 'seed')}"
    value, _, half = share(line).partition(" ±")
    spread = f" (±{half})" if half else " (one seed, so no interval)" if line.half is None else ""
    worse = "worse than undistilled in as many steps, " if line.value + (line.half or 0) < 0 else ""
    return f"{worse}{value} {part}{spread}"


def _faster(speedup: float) -> str:
    return f"{number(speedup, 2)} times faster" if speedup >= 1 else f"{number(1 / speedup, 2)} times slower"
