"""Networks of transformers, from a zipped folder of `config.json` and safetensors; nothing is downloaded.

The classes that are built are written out in `CLASSES`. The configuration is given to the class of its own library
version; the weights go through that library's loader, which knows the names that older versions wrote.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import nn

from models.errors import Code, Failure
from models.reading import ReadOptions
from worker.engine.ingest.named.built import Built, refuse_buffers
from worker.engine.ingest.named.checkpoint import precision_notice, refuse_differences, refuse_quantized
from worker.engine.ingest.named.classes import CLASSES, Called
from worker.engine.ingest.named.folder import Folder
from worker.engine.ingest.named.torchvision_ops import make_importable
from worker.engine.ingest.rejected import rejected, shown

_REFUSED = {
    "auto_map": "names Python code",
    "custom_pipelines": "names Python code",
    "trust_remote_code": "asks to run code from the folder",
    "quantization_config": "says that the network is quantized already; send the one from before",
    "compression_config": "says that the network is compressed already; send the one from before",
    "attn_implementation": "names code for attention",
    "_attn_implementation": "names code for attention",
    "_attn_implementation_internal": "names code for attention",
    "_experts_implementation": "names code for experts",
    "experts_implementation": "names code for experts",
    "use_kernels": "asks for code from elsewhere",
    "kernel_config": "asks for code from elsewhere",
}
_DROPPED = frozenset({"dtype", "torch_dtype", "transformers_version", "transformers_weights", "architectures"})
"""Not of the network: it is built in float32, and by name. Nor is what begins with an underscore."""
_DEPTHS = frozenset(
    {
        *("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "depths"),
        *("num_hidden_groups", "inner_group_num", "num_stages", "num_feat_extract_layers"),
    }
)
_SLACK_ELEMENTS = 1 << 20


def build_transformers(name: str | None, options: ReadOptions, folder: Folder) -> Built:
    """The network in the folder, in eval mode. `name` is its class, by default the one in `config.json`.

    Raises `Failure`: unsupported_here where transformers is not installed; network_rejected.
    """
    config = _readable(folder.config)
    name = name or _class_name(folder.config)
    if name not in CLASSES:
        nearest = difflib.get_close_matches(name, CLASSES, n=5, cutoff=0.4) or list(CLASSES)
        raise rejected(
            f"{shown(name)} is not among the classes that are built: {', '.join(nearest)} …; export it instead"
        )
    called = CLASSES[name]
    kind = _class(called, name)
    if config.get("model_type") != kind.config_class.model_type:
        raise rejected(f"config.json is of model_type {shown(str(config.get('model_type')))}, not of {name}")
    tensors = folder.tensors()
    elements = sum(tensor.numel() for tensor in tensors.values())
    _refuse_depth(config, len(tensors))
    settings = _configuration(kind, config)
    with torch.device("meta"):
        planned = _create(kind, settings)
    wanted = sum(tensor.numel() for tensor in planned.parameters())
    if wanted > 2 * elements + _SLACK_ELEMENTS:
        raise rejected(f"config.json describes {wanted} parameters, the files hold {elements}")
    refuse_buffers(planned)
    stored = planned.state_dict()
    refuse_quantized(each for key, each in tensors.items() if key in stored and stored[key].is_floating_point())
    del planned, stored
    module = _filled(kind, name, settings, tensors)
    inputs = called.inputs(module.config, options)
    return Built(module.eval(), inputs, precision_notice(tensors.values()), called.outputs)


def _class_name(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise rejected("config.json does not name one class in `architectures`: say `arch=transformers/<class>`")
    return names[0]


def _readable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what is not of the network. Raises `Failure` for what names code."""
    for key, value in _entries(config):
        if key in _REFUSED and value not in (None, False):
            raise rejected(f"`{key}` in config.json {_REFUSED[key]}; remove it if the network does without")
    return {key: value for key, value in config.items() if key not in _DROPPED and not key.startswith("_")}


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Of a document and every one in it; JSON from our reader nests less than Python recurses."""
    if isinstance(value, dict):
        return [*value.items(), *(entry for each in value.values() for entry in _entries(each))]
    return [entry for each in value for entry in _entries(each)] if isinstance(value, list) else []


def _refuse_depth(config: dict[str, Any], tensors: int) -> None:
    """Every layer has a tensor: what claims more would only take long to build."""
    for key, value in _entries(config):
        depths = value if isinstance(value, list) else [value]
        if key in _DEPTHS and any(isinstance(depth, int) and depth > tensors for depth in depths):
            raise rejected(f"`{key}` in config.json is {value}, and the files hold {tensors} tensors"[:300])


def _class(called: Called, name: str) -> Any:
    make_importable()
    try:
        import transformers
    except ImportError as error:
        raise Failure(
            Code.UNSUPPORTED_HERE,
            "this deployment has no transformers, which `arch=transformers` needs: "
            "`pip install 'modelpress[architectures]'`",
        ) from error
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module = importlib.import_module(f"transformers.models.{called.family}.modeling_{called.family}")
    return getattr(module, name)


def _configuration(kind: Any, config: dict[str, Any]) -> Any:
    try:
        settings = kind.config_class.from_dict(config)
        settings.use_cache = False
    except Exception as error:  # the library's own checks raise many kinds
        raise rejected(f"transformers does not take this config.json: {_first_line(error)}") from error
    return settings


def _create(kind: Any, settings: Any) -> nn.Module:
    try:
        module: nn.Module = kind(settings)
    except Exception as error:  # anything, on settings that do not fit together
        raise rejected(
            f"transformers cannot build {kind.__name__} from this config.json: {_first_line(error)}"
        ) from error
    return module


def _filled(kind: Any, name: str, settings: Any, tensors: dict[str, torch.Tensor]) -> Any:
    try:
        module, found = kind.from_pretrained(
            None,
            config=settings,
            state_dict=dict(tensors),
            dtype=torch.float32,
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise rejected(f"transformers cannot load {name} from these files: {_first_line(error)}") from error
    refuse_differences(
        f"transformers' {name}",
        missing=found["missing_keys"],
        unexpected=found["unexpected_keys"],
        shapes={key: (file, own) for key, file, own in found["mismatched_keys"]},
    )
    return module


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__
