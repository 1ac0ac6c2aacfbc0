"""Numbers and names as people read them: in tables, charts, progress lines and messages."""

from __future__ import annotations

import math
import re


def number(value: float, digits: int = 3) -> str:
    """``1138``, ``24.4``, ``0.00124``: significant digits, without an exponent from a millionth to a billion."""
    if not math.isfinite(value):
        return "not finite"
    short = f"{value:.{digits - 1}e}"
    if value and not 1e-6 <= abs(value) < 1e9:
        return short
    return fixed(value, decimals(float(short), digits))


def decimals(value: float, digits: int) -> int:
    """How many decimals show so many significant digits of a finite value."""
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0


def fixed(value: float, places: int) -> str:
    """With so many decimals; never a negative zero."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.{places}f}"
    return text if float(text) else text.lstrip("-")


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and its end around an ellipsis."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


def markdown_escaped(text: str) -> str:
    """The text with nothing in it that Markdown, its HTML or its formulas would read as a mark."""
    text = re.sub(r"([\\`*{}\[\]<>|#~$&])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is one


def chart_escaped(text: str) -> str:
    """The text with no formula in it for matplotlib."""
    return text.replace("$", r"\$")
