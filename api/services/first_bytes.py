"""What the first bytes and the length of an upload already show."""

from __future__ import annotations

from models.errors import Code, Failure
from models.inspections import UploadTable


def refuse_by_first_bytes(table: UploadTable, first: bytes, size_bytes: int | None) -> None:
    """`first` is the file's beginning; `size_bytes` its length, `None` while it is not known.

    Raises `Failure` for what cannot become a network, or a data set.
    """
    if not first:
        raise Failure(Code.EMPTY_FILE, "The body is empty.")
