"""What the first bytes and the length of an upload already show."""

from __future__ import annotations

from models.formats import HEAD_BYTES, sniff_dataset, sniff_network
from models.inspections import UploadTable
from models.reading import ReadOptions
from models.tables import Network


def refuse_by_first_bytes(
    table: UploadTable, first: bytes, size_bytes: int | None, name: str, read_options: ReadOptions | None
) -> None:
    """`first` is the file's beginning; `size_bytes` its length, `None` while it is not known.

    Raises `Failure` for what cannot become a network, or a data set, and says what it is and how to convert it.
    """
    if table is Network:
        sniff_network(first[:HEAD_BYTES], size_bytes, name, arch=read_options.arch if read_options else None)
    else:
        sniff_dataset(first[:HEAD_BYTES], size_bytes, name)
