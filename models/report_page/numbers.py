"""How numbers are written. `number` keeps the exact value, and where in the report it stands, beside what is shown."""

from __future__ import annotations

from collections.abc import Callable

from models.report_page.markup import Html, element

Form = Callable[[float], str]
_SIZES = ("B", "kB", "MB", "GB", "TB")


def number(value: float, form: Form, pointer: str) -> Html:
    """`pointer` is a JSON pointer into the report."""
    return element("data", form(value), value=repr(value), data_at=pointer)


def count(value: float) -> str:
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in powers of 1000, four digits."""
    power = 0
    while abs(value) >= 999.95 and power < len(_SIZES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.0f} B" if power == 0 else f"{digits(value)} {_SIZES[power]}"


def large(value: float) -> str:
    """A count in words that fit: 11.69 million."""
    for limit, name in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= limit:
            return f"{digits(value / limit)} {name}"
    return count(value)


def milliseconds(value: float) -> str:
    return f"{digits(value)} ms"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def metric(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def decibels(value: float) -> str:
    return f"{value:.1f} dB"


def digits(value: float) -> str:
    """Four digits that count, never in powers of ten."""
    magnitude = abs(value)
    places = 1 if magnitude >= 100 else 2 if magnitude >= 10 else 3 if magnitude >= 1 else 4
    return f"{value:.{places}f}"


def times(larger: float, smaller: float) -> str:
    """6.4× for what is 6.4 times as much."""
    ratio = larger / smaller
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"
