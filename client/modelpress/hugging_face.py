"""Hugging Face models, from a folder or a name, as modules that `torch.export` and the service understand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelpress.outcomes import PrepareError

_TOKENS = 128


class FirstOutput(nn.Module):
    """Calls a transformers model and keeps its first output: the logits, or the last hidden state."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network

        def forward(*values: Tensor) -> Tensor:
            first: Tensor = self.network(**dict(zip(names, values, strict=True)), return_dict=False)[0]
            return first

        # torch.export names the inputs after forward's arguments.
        arguments = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
        self.forward = forward


def load_pretrained(source: str | Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and one batch of inputs for it. No code that comes with the model is run.

    An export fixes every size but the batch: for sequences of another length than 128 give `prepare` your own inputs.

    Raises PrepareError when transformers is not installed or does not know the model.
    """
    try:
        import transformers
    except ImportError as error:
        raise PrepareError("A Hugging Face model needs `pip install transformers`.") from error
    if isinstance(source, Path) and not source.is_dir():
        raise PrepareError(f"{source} is not a folder of a Hugging Face model.")
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        names = [name for name in config.architectures or () if hasattr(transformers, name)]
        kind: Any = getattr(transformers, names[0]) if names else transformers.AutoModel
        network = kind.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise PrepareError(f"transformers cannot load {source}: {str(error).strip().splitlines()[0]}") from error
    network.config.use_cache = False
    inputs = _inputs_for(network)
    return FirstOutput(network.eval(), list(inputs)), inputs


def _inputs_for(network: Any) -> dict[str, Tensor]:
    """Token models get their full length, 128 at most; the others what transformers keeps for them."""
    if getattr(network, "main_input_name", "input_ids") == "input_ids":
        length = min(_TOKENS, getattr(network.config, "max_position_embeddings", None) or _TOKENS)
        tokens = torch.zeros(2, length, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: value for name, value in network.dummy_inputs.items() if isinstance(value, Tensor)}
