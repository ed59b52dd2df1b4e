"""JSON bodies, read strictly: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from fastapi import Request

from api.bodies import read_small_body, refuse_encodings
from api.pointers import escape
from models.errors import Code, Failure, FieldProblem

MAX_JSON_BYTES = 1 << 20
MAX_DEPTH = 64


def _refuse(message: str, pointer: str = "") -> NoReturn:
    raise Failure(
        Code.INVALID_REQUEST,
        f"The body is not valid JSON: {message}",
        problems=(FieldProblem(pointer=pointer, message=message),),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        _refuse(f"the key {repeated!r} is given twice")
    return result


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not a JSON number")


def _check(value: Any, pointer: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        _refuse(f"nested deeper than {MAX_DEPTH}")
    match value:
        case str():
            if "\x00" in value or any(0xD800 <= ord(character) <= 0xDFFF for character in value):
                _refuse("text must not hold NUL or lone surrogates", pointer)
        case dict():
            for key, item in value.items():
                _check(key, pointer, depth + 1)
                _check(item, f"{pointer}/{escape(key)}", depth + 1)
        case list():
            for index, item in enumerate(value):
                _check(item, f"{pointer}/{index}", depth + 1)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, UTF-8 without a byte-order mark.

    Raises `Failure(INVALID_REQUEST)` for anything else: doubled keys, NaN and infinities, NUL, lone surrogates,
    nesting beyond 64, integers of thousands of digits.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        _refuse(f"byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        _refuse(f"{error.msg} at line {error.lineno} column {error.colno}")
    except RecursionError:
        _refuse(f"nested deeper than {MAX_DEPTH}")
    except ValueError:
        _refuse("a number has too many digits")
    if not isinstance(value, dict):
        _refuse("an object is expected")
    _check(value, "", 0)
    return value


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body as an object. Raises 415 unless it is declared as plain JSON, 413 above 1 MiB."""
    refuse_encodings(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Failure(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"The body is declared as {media_type or 'nothing'}; send `Content-Type: application/json`.",
        )
    return parse(await read_small_body(request, MAX_JSON_BYTES))
