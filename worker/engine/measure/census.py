"""Which kernels run a file of 8-bit integers: counted in the graph that ONNX Runtime makes of it.

How fast such a file is depends on what the runtime fuses, which its operators alone do not show.
"""

from __future__ import annotations

from pathlib import Path

from models.report import Census
from worker.engine.measure.runtime import FreshProcess

_INTEGER = ("ConvInteger", "DynamicQuantize", "MatMulInteger", "MatMulNBits", "QAttention", "QGemm", "QLinear")
_SHOWN = 5


def take_census(path: Path, folder: Path) -> Census:
    """Of the ONNX file at `path`, in a fresh process. Raises `Failure(VERIFICATION_FAILED)` when the runtime refuses
    it."""
    with FreshProcess(folder) as process:
        found = process.census(path)
    operators: dict[str, int] = found["operators"]
    return Census(
        integer_kernels={name: count for name, count in sorted(operators.items()) if _is_integer(name)},
        float_kernels=dict(sorted(found["float_operators"].items())),
        unpacked_each_call=found["float_on_integers"],
    )


def _is_integer(operator: str) -> bool:
    return operator.startswith(_INTEGER) and operator != "DynamicQuantizeLinear"  # It only makes integers.


def what_is_left_over(census: Census, file: str) -> str | None:
    """In words, what the runtime did not make an integer kernel of; None where nothing is left over."""
    left = census.unpacked_each_call
    if not left:
        return None
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return (
        f"ONNX Runtime runs {len(left)} operators of {file} in floating point on weights stored as integers, and makes "
        f"these floats at every call ({', '.join(left[:_SHOWN])}{more}): slower than the original there. "
        "Skip those layers with `layers`."
    )
