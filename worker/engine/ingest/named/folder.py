"""A zipped folder as Hugging Face keeps networks: `config.json`, and weights as safetensors, whole or in shards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from models.errors import Code
from worker.engine.ingest.container import StoredZip
from worker.engine.ingest.named.safetensors_file import read_safetensors
from worker.engine.ingest.rejected import rejected, shown

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
MAXIMUM_JSON_BYTES = 16 << 20
_WEIGHTS = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")
_CODE = re.compile(r".*\.(py|pyc|so|sh|ipynb)", re.IGNORECASE)
_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|onnx|gguf|ot|npz)", re.IGNORECASE)


class Folder(StoredZip):
    """The members of the zip file. Of all of them only the configuration, the index and the weights are ever opened."""

    compressed = Code.COMPRESSED_RECORD
    rooted = False
    advice = (
        "pack the folder without compression: `zip -0 -r network.zip FOLDER`, or let `modelpress upload FOLDER` do it"
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config = self._json(CONFIG)

    def check_name(self, name: str) -> None:
        if _CODE.fullmatch(name):
            raise rejected(f"archive member {shown(name)} is code, which is never run: leave it out")
        if name == "adapter_config.json":
            raise rejected("the folder holds an adapter: merge it into its network (`merge_and_unload`) and save that")
        if _OTHER_WEIGHTS.fullmatch(name):
            raise rejected(
                f"archive member {shown(name)} is not safetensors: save with `save_pretrained` and leave it out"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All weights, shard by shard. Raises `Failure` unless the shards are what the index says."""
        shards = sorted(name for name in self.members if _WEIGHTS.fullmatch(name))
        if not shards:
            raise rejected("the folder holds no `.safetensors` file")
        places: dict[str, str] = {}
        found: dict[str, Tensor] = {}
        for shard in shards:
            for name, tensor in read_safetensors(self.read(shard), shown(shard)).items():
                if name in found:
                    raise rejected(f"tensor {shown(name)} is in {places[name]} and in {shard}")
                found[name], places[name] = tensor, shard
        if INDEX in self:
            self._check_index(places)
        elif len(shards) > 1:
            raise rejected(f"the folder holds {len(shards)} `.safetensors` files and no {INDEX}")
        return found

    def _check_index(self, places: dict[str, str]) -> None:
        index = self._json(INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise rejected(f"{INDEX} has no `weight_map`")
        wrong = sorted(name for name in {*index, *places} if index.get(name) != places.get(name))
        if wrong:
            name = wrong[0]
            raise rejected(
                f"tensor {shown(name)} should be in {shown(str(index.get(name)))} by {INDEX}, and is in "
                f"{shown(str(places.get(name)))}; {len(wrong)} tensors differ"
            )

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self:
            raise rejected(f"the folder has no {name}, which says what network it is")
        try:
            document = json.loads(self.read(name, MAXIMUM_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise rejected(f"{name} is not JSON: {str(error)[:100]}") from error
        if not isinstance(document, dict):
            raise rejected(f"{name} should hold one JSON object")
        return document
