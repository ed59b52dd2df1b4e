"""The members of a `.pt2`.

Three layouts have been written, of which only the members listed here are let in: torch/export/pt2_archive with tensors
as raw bytes (torch 2.9 and later), the same with two files of torch.save for them (2.8), and before that a zip file
without a root folder (torch/export/__init__.py of 2.5 to 2.7).
"""

from __future__ import annotations

import re
import zipfile

from worker.engine.ingest.container import StoredZip
from worker.engine.ingest.rejected import bad_archive, rejected, shown

MAXIMUM_JSON_BYTES = 64 << 20

GRAPH = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
SAVED_WEIGHTS = "data/weights/model.pt"
SAVED_CONSTANTS = "data/constants/model.pt"
OLD_GRAPH = "serialized_exported_program.json"
OLD_WEIGHTS = "serialized_state_dict.pt"
OLD_CONSTANTS = "serialized_constants.pt"
BYTE_ORDER = "byteorder"
FORMAT = "archive_format"

_READ = re.compile(
    r"models/model\.json|data/weights/model_weights_config\.json|data/constants/model_constants_config\.json"
    r"|data/weights/weight_\d{1,7}|data/constants/tensor_\d{1,7}|byteorder|archive_format"
    r"|data/(weights|constants)/model\.pt|serialized_(exported_program\.json|state_dict\.pt|constants\.pt)"
)
_NEVER_OPENED = re.compile(
    r"data/sample_inputs/model\.pt|serialized_example_inputs\.pt|archive_version|version|\.data/version"
    r"|\.data/serialization_id|extra(_files)?/[A-Za-z0-9_.-]+"
)
_REFUSED = (
    (re.compile(r"data/aotinductor/.*"), "it carries a compiled library, which would be machine code from the file"),
    (re.compile(r"data/constants/(opaque|custom)_obj_.*"), "it carries a pickled object, which can run code when read"),
    (
        re.compile(r"data/(weights|constants)/.*\.pt|serialized_.*|.*\.pkl"),
        "it carries a pickle that torch 2.5 to 2.15 does not write; export it again with one of these",
    ),
    (re.compile(r"models/.*"), "it holds another program besides `model`; save one network a file"),
)


class Archive(StoredZip):
    """The members of a `.pt2` by name (without the root folder). Raises `Failure` (bad_archive, network_rejected)."""

    def _root(self, infos: list[zipfile.ZipInfo]) -> str:
        return "" if any(info.filename == OLD_GRAPH for info in infos) else super()._root(infos)

    def check_name(self, name: str) -> None:
        if _READ.fullmatch(name) or _NEVER_OPENED.fullmatch(name):
            return
        for pattern, reason in _REFUSED:
            if pattern.fullmatch(name):
                raise rejected(f"archive member {shown(name)} is refused: {reason}")
        raise rejected(f"archive member {shown(name)} does not belong in a .pt2 made by torch.export.save")

    def member(self, name: str) -> zipfile.ZipInfo:
        if not _READ.fullmatch(name) or name not in self.members:
            raise bad_archive(f"the archive has no member {shown(name)}; it is not a whole torch.export file")
        return super().member(name)
