"""Hugging Face models, from a folder or a name, as modules that `torch.export` and the service understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modelpress.outcomes import PrepareError


class _Tensors(nn.Module):
    """Calls a transformers model and keeps its first output: the logits, or the last hidden state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> Tensor:
        first: Tensor = self.network(**inputs, return_dict=False)[0]
        return first


def load_pretrained(source: str | Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and one batch of inputs for it. No code that comes with the model is run.

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
    wanted = network.dummy_inputs
    inputs = {name: value for name, value in wanted.items() if isinstance(value, Tensor)}
    main = getattr(network, "main_input_name", "input_ids")
    if main == "input_ids" and "input_ids" in inputs:
        inputs["attention_mask"] = inputs["input_ids"].new_ones(inputs["input_ids"].shape)
    return _Tensors(network.eval()), inputs
