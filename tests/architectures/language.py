"""Language networks of transformers, small and with random weights."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests import torchvision_ops
from tests.architectures.registry import Build, Registry
from tests.networks import Example, randomised


class Returns(nn.Module):
    """The part of a transformers model that a person exports: tensors in under `names`, some of its outputs out."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs

    def forward(
        self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        given = [tensor for tensor in (first, second, third) if tensor is not None]
        found = self.model(**dict(zip(self.names, given, strict=True)))
        if len(self.outputs) == 1:
            tensor: Tensor = found[self.outputs[0]]
            return tensor
        return {name: found[name] for name in self.outputs}


def transformers_network(
    kind: str, config: str, inputs: dict[str, Tensor], outputs: tuple[str, ...] = ("logits",), **settings: Any
) -> Example:
    """The class `kind` of transformers with a configuration of class `config`."""
    torchvision_ops.declare()
    import transformers

    made = getattr(transformers, config)(**settings)
    module = Returns(getattr(transformers, kind)(made), tuple(inputs), outputs)
    return randomised(module), tuple(inputs.values())


def tokens(length: int = 12, vocabulary: int = 64) -> Tensor:
    """Two sequences."""
    return torch.randint(1, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}


def _encoder(name: str, kind: str = "ForSequenceClassification", **settings: Any) -> Build:
    def build() -> Example:
        ids = tokens()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return transformers_network(name + kind, name + "Config", inputs, num_labels=3, **{**_SIZES, **settings})

    return build


def _decoder(name: str, kind: str = "ForCausalLM", **settings: Any) -> Build:
    def build() -> Example:
        inputs = {"input_ids": tokens()}
        return transformers_network(name + kind, name + "Config", inputs, use_cache=False, **{**_SIZES, **settings})

    return build


def _sequence_to_sequence(kind: str, config: str, **settings: Any) -> Build:
    def build() -> Example:
        inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(7)}
        return transformers_network(kind, config, inputs, use_cache=False, vocab_size=64, **settings)

    return build


_BART: dict[str, Any] = {
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 32,
}
_T5: dict[str, Any] = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
_GPT: dict[str, Any] = {"n_embd": 48, "n_layer": 2, "n_head": 4}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 12}

LANGUAGE: Registry = {
    "bert": _encoder("Bert"),
    "bert_tagger": _encoder("Bert", "ForTokenClassification"),
    "bert_masked_tokens": _encoder("Bert", "ForMaskedLM"),
    "bert_of_two_outputs": lambda: transformers_network(
        "BertForQuestionAnswering", "BertConfig", {"input_ids": tokens()}, ("start_logits", "end_logits"), **_SIZES
    ),
    "distilbert": _encoder("DistilBert", dim=48, n_layers=2, n_heads=4, hidden_dim=96),
    "roberta": _encoder("Roberta", pad_token_id=0),
    "electra": _encoder("Electra", embedding_size=24),
    "albert": _encoder("Albert", embedding_size=24),
    "mpnet": _encoder("MPNet", pad_token_id=0),
    "mobilebert": _encoder(
        "MobileBert", embedding_size=24, intra_bottleneck_size=24, intermediate_size=48, hidden_size=48
    ),
    "deberta_v2": _encoder("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    "modernbert": _encoder(
        "ModernBert", pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "roformer": _encoder("RoFormer"),
    "convbert": _encoder("ConvBert", embedding_size=48),
    "squeezebert": _encoder("SqueezeBert", embedding_size=48),
    "gpt2": _decoder("GPT2", "LMHeadModel", n_positions=32, **_GPT),
    "gpt2_classifier": _decoder("GPT2", "ForSequenceClassification", n_positions=32, pad_token_id=0, **_GPT),
    "gpt_neo": _decoder("GPTNeo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    "gpt_neox": _decoder("GPTNeoX"),
    "gpt_j": _decoder("GPTJ", n_positions=32, rotary_dim=4, **_GPT),
    "opt": _decoder("OPT", ffn_dim=96, word_embed_proj_dim=48),
    "bloom": _decoder("Bloom", n_layer=2, n_head=4),
    "llama": _decoder("Llama", **_GROUPED),
    "mistral": _decoder("Mistral", **_GROUPED),
    "qwen2": _decoder("Qwen2", **_GROUPED),
    "qwen3": _decoder("Qwen3", **_GROUPED),
    "gemma": _decoder("Gemma", **_GROUPED),
    "gemma2": _decoder("Gemma2", **_GROUPED),
    "phi": _decoder("Phi"),
    "phi3": _decoder("Phi3", pad_token_id=0, num_key_value_heads=2),
    "falcon": _decoder("Falcon"),
    "stablelm": _decoder("StableLm", num_key_value_heads=2, partial_rotary_factor=0.5),
    "olmo2": _decoder("Olmo2", num_key_value_heads=2),
    "granite": _decoder("Granite", num_key_value_heads=2),
    "cohere": _decoder("Cohere", num_key_value_heads=2),
    "starcoder2": _decoder("Starcoder2", num_key_value_heads=2),
    "t5": _sequence_to_sequence("T5ForConditionalGeneration", "T5Config", **_T5),
    "t5_gated": _sequence_to_sequence(
        "T5ForConditionalGeneration", "T5Config", **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "bart": _sequence_to_sequence("BartForConditionalGeneration", "BartConfig", **_BART),
    "marian": _sequence_to_sequence("MarianMTModel", "MarianConfig", pad_token_id=0, **_BART),
    "pegasus": _sequence_to_sequence("PegasusForConditionalGeneration", "PegasusConfig", **_BART),
}
