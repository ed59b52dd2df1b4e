"""Where blobs are kept: in a folder, or in an S3 bucket."""

from __future__ import annotations

from pathlib import Path

from models.blobs import Blobs, FolderBlobs
from models.settings import Settings


def open_blobs(settings: Settings) -> Blobs:
    """The store that the setting `blobs` names. Raises `ValueError` for one that makes no sense."""
    if "://" not in settings.blobs:
        return FolderBlobs(Path(settings.blobs))
    from models.s3_blobs import S3Blobs  # obstore is an extra

    return S3Blobs.of(settings)
