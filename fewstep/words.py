"""Numbers and names for people to read: in tables, charts, progress lines and messages."""

from __future__ import annotations

import math
import re


def number(value: float, digits: int = 3) -> str:
    """``1138``, ``24.4``, ``0.00124``: significant digits, with an exponent only below 1e-6 and from 1e9 on."""
    if not math.isfinite(value):
        return "not finite"
    short = f"{value:.{digits - 1}e}"
    if value and not 1e-6 <= abs(value) < 1e9:
        return short
    return fixed(value, decimals(float(short), digits))


def decimals(value: float, digits: int) -> int:
    """The number of decimals that shows ``digits`` significant digits of a finite value."""
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0


def fixed(value: float, places: int) -> str:
    """The number with ``places`` decimals; never a negative zero."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.{places}f}"
    return text if float(text) else text.lstrip("-")


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end around an ellipsis if it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"


def markdown_escaped(text: str) -> str:
    """The text with every character escaped that Markdown, HTML in it or its formulas would interpret."""
    text = re.sub(r"([\\`*{}\[\]<>|#~$&])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is plain text


def chart_escaped(text: str) -> str:
    """The text with dollar signs escaped, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")
