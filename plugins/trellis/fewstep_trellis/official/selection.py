"""Which objects a data set is made of: filters over the tables of its roots, counted, and each object once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.errors import FewstepError
from fewstep_trellis.official.table import Row, check_roots, read_table

TOTAL = "Total"
Test = Callable[[Row], bool | None]


@dataclass(frozen=True)
class Filter:
    """One condition on a row: its name in the statistics, and a test that says None where the value is missing."""

    name: str
    test: Test


@dataclass
class RootCount:
    """What a root's table has: objects left after each filter in order, and rows without a value there."""

    root: Path
    left: dict[str, int]
    missing: dict[str, int] = field(default_factory=dict)


@dataclass
class Selection:
    """The objects of a data set in order, and why others were left out.

    ``twice`` lists objects that passed in more than one place: (identifier, the place used, the place left out).
    """

    rows: list[Row]
    counts: list[RootCount]
    twice: list[tuple[str, Path, Path]]

    def lines(self) -> Iterator[str]:
        """What a user should know of the selection, in a few lines."""
        for count in self.counts:
            steps = ", ".join(f"{name}: {left}" for name, left in count.left.items())
            yield f"{count.root}: {steps}"
            for name, number in count.missing.items():
                yield f"{count.root}: {number} rows have no value for {name!r}: left out"
        yield from self.doubled()

    def doubled(self) -> Iterator[str]:
        """What is said of objects in more than one place."""
        pairs = Counter((used, other) for _, used, other in self.twice)
        for (used, other), number in pairs.items():
            yield f"{number} objects of {other} are in {used} too: that one is used"


def has(column: str) -> Test:
    """A column that must say True."""
    return lambda row: row.flag(column)


def filled(column: str) -> Test:
    """A column that must have a value."""
    return lambda row: row.text(column) is not None


def at_least(column: str, bound: float) -> Test:
    """A number of at least ``bound``."""

    def test(row: Row) -> bool | None:
        value = row.number(column)
        return None if value is None else value >= bound

    return test


def at_most(column: str, bound: float) -> Test:
    """A number of at most ``bound``."""

    def test(row: Row) -> bool | None:
        value = row.number(column)
        return None if value is None else value <= bound

    return test


def select(roots: Sequence[Path], filters: Sequence[Filter]) -> Selection:
    """The objects of all roots that pass every filter. One that is in two roots is used once, from the first.

    Raises:
        FewstepError: for no roots, one without a readable table, a missing column, a value of the wrong kind.
    """
    check_roots(roots)
    return chosen([(root, read_table(root)) for root in roots], filters)


def chosen(tables: Sequence[tuple[Path, list[Row]]], filters: Sequence[Filter]) -> Selection:
    """``select`` of tables that were read, each with its name for messages."""
    counts, found, twice = [], dict[str, Row](), []
    for root, table in tables:
        rows, count = _passing(root, table, filters)
        counts.append(count)
        for row in rows:
            used = found.setdefault(row.sha256, row)
            if used is not row:
                twice.append((row.sha256, used.root, row.root))
    return Selection(list(found.values()), counts, twice)


def _passing(root: Path, rows: list[Row], filters: Sequence[Filter]) -> tuple[list[Row], RootCount]:
    count = RootCount(root, {TOTAL: len(rows)})
    for one in filters:
        verdicts = [one.test(row) for row in rows]
        if missing := verdicts.count(None):
            count.missing[one.name] = missing
        rows = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict]
        count.left[one.name] = len(rows)
    return rows, count


def nonempty(selection: Selection) -> Selection:
    """The selection, if there is anything in it.

    Raises:
        FewstepError: otherwise, with what every filter left.
    """
    if selection.rows:
        return selection
    raise FewstepError("\n".join(["data.roots: no object passes the filters", *selection.lines()]))
