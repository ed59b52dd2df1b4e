"""From weights and a name to a `.pt2`, which our own reader then reads: one road for every network.

timm and transformers run here, and torch.export; nothing that came with the upload does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.inspection import Notice
from models.reading import ReadOptions
from worker.engine.ingest.named.built import Built, export
from worker.engine.ingest.named.checkpoint import read_checkpoint
from worker.engine.ingest.named.folder import Folder
from worker.engine.ingest.named.timm_network import build_timm
from worker.engine.ingest.named.transformers_network import build_transformers
from worker.engine.ingest.rejected import rejected


@dataclass(frozen=True)
class Exported:
    """`format` is that of the file that was uploaded."""

    format: Literal["safetensors", "pth", "transformers"]
    notices: tuple[Notice, ...]


def export_named(path: Path, kind: Literal["zip", "safetensors"], options: ReadOptions, target: Path) -> Exported:
    """Build the network `options.arch` names, fill it from the file at `path`, and write it to `target` as a `.pt2`.

    Raises `Failure`: unsupported_here without the library; what the readers of the file and the networks say.
    """
    assert options.arch is not None
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    library, _, name = options.arch.partition("/")
    built: Built
    if library == "timm":
        checkpoint = read_checkpoint(path, kind)
        built = build_timm(name, options, checkpoint)
        exported = Exported(checkpoint.format, (*checkpoint.notices, *built.notices))
        del checkpoint
    else:
        if kind != "zip":
            raise rejected("for `arch=transformers` send a zip of config.json and the safetensors beside it")
        with Folder(path) as folder:
            built = build_transformers(name or None, options, folder)
        exported = Exported("transformers", built.notices)
    export(built, options.arch, target)
    return exported
