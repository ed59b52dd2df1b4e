"""The members of a `.pt2`.

Layout: torch/export/pt2_archive (torch 2.11 to 2.13). Only the members listed here are let in.
"""

from __future__ import annotations

import re

from worker.engine.ingest.container import StoredZip
from worker.engine.ingest.rejected import bad_archive, rejected, shown

MAXIMUM_JSON_BYTES = 64 << 20

GRAPH = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
BYTE_ORDER = "byteorder"
FORMAT = "archive_format"

_READ = re.compile(
    r"models/model\.json|data/weights/model_weights_config\.json|data/constants/model_constants_config\.json"
    r"|data/weights/weight_\d{1,7}|data/constants/tensor_\d{1,7}|byteorder|archive_format"
)
_NEVER_OPENED = re.compile(
    r"data/sample_inputs/model\.pt|archive_version|version|\.data/version|\.data/serialization_id|extra/[A-Za-z0-9_.-]+"
)
_REFUSED = (
    (re.compile(r"data/aotinductor/.*"), "it carries a compiled library, which would be machine code from the file"),
    (re.compile(r"data/constants/(opaque|custom)_obj_.*"), "it carries a pickled object, which can run code when read"),
    (
        re.compile(r"data/(weights|constants)/.*\.pt|serialized_.*|.*\.pkl"),
        "it carries pickled tensors, as torch before 2.9 wrote them; export it again with torch 2.11 or newer",
    ),
    (re.compile(r"models/.*"), "it holds another program besides `model`; save one network a file"),
)


class Archive(StoredZip):
    """The members of a `.pt2` by name (without the root folder). Raises `Failure` (bad_archive, network_rejected)."""

    def check_name(self, name: str) -> None:
        if _READ.fullmatch(name) or _NEVER_OPENED.fullmatch(name):
            return
        for pattern, reason in _REFUSED:
            if pattern.fullmatch(name):
                raise rejected(f"archive member {shown(name)} is refused: {reason}")
        raise rejected(f"archive member {shown(name)} does not belong in a .pt2 made by torch.export.save")

    def read(self, name: str, maximum: int | None = None) -> bytes:
        """The bytes of a member that may be read; checks its CRC."""
        if not _READ.fullmatch(name):
            raise bad_archive(f"the archive has no member {shown(name)}; it is not a whole torch.export file")
        return super().read(name, maximum)
