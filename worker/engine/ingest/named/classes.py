"""The classes of transformers that are built, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.reading import ReadOptions, parse_input_shape
from worker.engine.ingest.rejected import rejected

Inputs = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

TOKENS = 128
"""Positions of a sequence, where the network has so many and nothing else is said."""
SAMPLES = 16_000
"""Of sound: a second, at the rate these networks were trained with."""


@dataclass(frozen=True)
class Called:
    """`family` is the folder of transformers; `shapes` gives each input's, without the batch, for a configuration."""

    family: str
    outputs: tuple[str, ...]
    shapes: Callable[[Any], dict[str, tuple[int, ...]]]
    dtype: torch.dtype = torch.int64

    def inputs(self, config: Any, options: ReadOptions) -> Inputs:
        """Raises `Failure` (network_rejected) where `options.input_shape` does not fit."""
        shapes = self.shapes(config)
        given = dict(map(parse_input_shape, options.input_shape))
        if strangers := sorted(name for name in given if name is not None and name not in shapes):
            raise rejected(f"`input_shape` names {strangers[0]!r}; the inputs are {', '.join(shapes)}")
        for name, shape in shapes.items():
            wanted = given.get(name) or given.get(None)
            if wanted is not None and len(wanted) != len(shape) + 1:
                raise rejected(f"the input {name} has {len(shape) + 1} dimensions with the batch, not {len(wanted)}")
            shapes[name] = shape if wanted is None else wanted[1:]
        return {name: ((1, *shape), self.dtype) for name, shape in shapes.items()}


def _tokens(reserved: int = 0) -> Callable[[Any], dict[str, tuple[int, ...]]]:
    """`reserved` positions are never reached: some networks count them from behind the padding token."""

    def shapes(config: Any) -> dict[str, tuple[int, ...]]:
        positions = getattr(config, "max_position_embeddings", None) or TOKENS + reserved
        length = min(TOKENS, positions - reserved)
        return {"input_ids": (length,), "attention_mask": (length,)}

    return shapes


def _two_sequences(config: Any) -> dict[str, tuple[int, ...]]:
    return {"input_ids": (TOKENS,), "attention_mask": (TOKENS,), "decoder_input_ids": (TOKENS,)}


def _image(config: Any) -> dict[str, tuple[int, ...]]:
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": (config.num_channels, height, width)}


def _sound(config: Any) -> dict[str, tuple[int, ...]]:
    return {"input_values": (SAMPLES,)}


_HIDDEN, _LOGITS, _SPAN = ("last_hidden_state",), ("logits",), ("start_logits", "end_logits")
_HEADS = {
    "Model": _HIDDEN,
    "ForSequenceClassification": _LOGITS,
    "ForTokenClassification": _LOGITS,
    "ForMaskedLM": _LOGITS,
    "ForQuestionAnswering": _SPAN,
}


def _encoder(prefix: str, family: str, reserved: int = 0) -> dict[str, Called]:
    return {f"{prefix}{head}": Called(family, outputs, _tokens(reserved)) for head, outputs in _HEADS.items()}


def _decoder(prefix: str, family: str) -> dict[str, Called]:
    return {
        f"{prefix}Model": Called(family, _HIDDEN, _tokens()),
        f"{prefix}ForCausalLM": Called(family, _LOGITS, _tokens()),
    }


def _images(prefix: str, family: str) -> dict[str, Called]:
    return {
        f"{prefix}Model": Called(family, _HIDDEN, _image, torch.float32),
        f"{prefix}ForImageClassification": Called(family, _LOGITS, _image, torch.float32),
    }


def _sounds(prefix: str, family: str) -> dict[str, Called]:
    return {
        f"{prefix}Model": Called(family, _HIDDEN, _sound, torch.float32),
        f"{prefix}ForCTC": Called(family, _LOGITS, _sound, torch.float32),
        f"{prefix}ForSequenceClassification": Called(family, _LOGITS, _sound, torch.float32),
    }


CLASSES: dict[str, Called] = {
    **_encoder("Bert", "bert"),
    **_encoder("DistilBert", "distilbert"),
    **_encoder("Roberta", "roberta", reserved=2),
    **_encoder("XLMRoberta", "xlm_roberta", reserved=2),
    **_encoder("Electra", "electra"),
    **_encoder("Albert", "albert"),
    **_encoder("MPNet", "mpnet", reserved=2),
    **_decoder("Llama", "llama"),
    **_decoder("Mistral", "mistral"),
    **_decoder("Qwen2", "qwen2"),
    "GPT2Model": Called("gpt2", _HIDDEN, _tokens()),
    "GPT2LMHeadModel": Called("gpt2", _LOGITS, _tokens()),
    "T5ForConditionalGeneration": Called("t5", _LOGITS, _two_sequences),
    "T5EncoderModel": Called("t5", _HIDDEN, _tokens()),
    **_images("ViT", "vit"),
    **_images("DeiT", "deit"),
    **_images("Swin", "swin"),
    **_images("ConvNext", "convnext"),
    **_images("ResNet", "resnet"),
    **_sounds("Wav2Vec2", "wav2vec2"),
    **_sounds("Hubert", "hubert"),
}
