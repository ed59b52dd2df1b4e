"""Small networks of transformers, saved as people save them, and zipped as they are sent."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import torchvision_ops
from tests.networks import randomised
from worker.engine.ingest.named.classes import CLASSES

_SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
_SOUND = {
    **_SMALL,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": {**_SMALL, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48},
    "electra": {**_SMALL, "embedding_size": 16},
    "albert": {**_SMALL, "embedding_size": 16},
    "llama": {**_SMALL, "num_key_value_heads": 2},
    "mistral": {**_SMALL, "num_key_value_heads": 2},
    "qwen2": {**_SMALL, "num_key_value_heads": 2},
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24},
    "t5": {"vocab_size": 60, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 48, "d_kv": 8},
    "vit": _IMAGE,
    "deit": _IMAGE,
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "wav2vec2": _SOUND,
    "hubert": _SOUND,
}


def small_network(name: str, **changes: Any) -> Any:
    """One of `CLASSES`, of a size for tests, in eval mode."""
    torchvision_ops.declare()
    family = CLASSES[name].family
    kind = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
    torch.manual_seed(0)
    return randomised(kind(kind.config_class(**SETTINGS.get(family, _SMALL) | changes)))


def zipped(network: nn.Module, folder: Path, *, root: str = "net/", shard_size: str = "50GB", **config: Any) -> Path:
    """The zip of what `save_pretrained` writes, with a few files more; `config` changes `config.json`."""
    network.save_pretrained(folder, max_shard_size=shard_size)  # type: ignore[operator]
    document = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# A network")
    return pack(folder, folder.with_suffix(".zip"), root)


def pack(folder: Path, path: Path, root: str = "net/", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, root + file.name)
    return path
