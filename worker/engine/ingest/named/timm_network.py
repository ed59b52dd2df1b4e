"""Networks of timm, by name: built by timm, filled from the file. Nothing is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.errors import Code, Failure
from models.reading import ReadOptions, parse_input_shape
from worker.engine.ingest.named.built import Built, refuse_buffers
from worker.engine.ingest.named.checkpoint import Checkpoint, matched, precision_notice
from worker.engine.ingest.named.torchvision_ops import make_importable
from worker.engine.ingest.rejected import rejected


def build_timm(name: str, options: ReadOptions, checkpoint: Checkpoint) -> Built:
    """The network `name` with the checkpoint's weights, in eval mode, and the shape of its input.

    `options.num_classes` is by default that of the file's classifier; `options.input_shape` that of timm.
    Raises `Failure`: unsupported_here where timm is not installed; network_rejected.
    """
    make_importable()
    try:
        import timm
    except ImportError as error:
        raise Failure(
            Code.UNSUPPORTED_HERE,
            "this deployment has no timm, which `arch=timm/…` needs: `pip install 'modelpress[architectures]'`",
        ) from error
    defaults = _defaults(timm, name)
    shape = _shape(options, defaults)
    settings: dict[str, Any] = {"in_chans": shape[1]} if shape[1] != defaults.input_size[0] else {}
    if defaults.fixed_input_size and shape[2:] != defaults.input_size[1:]:
        settings["img_size"] = shape[2:]
    classes = options.num_classes if options.num_classes is not None else _classes(checkpoint, defaults)
    if classes is not None:
        settings["num_classes"] = classes
    with torch.device("meta"):
        planned = _create(timm, name, settings)
    refuse_buffers(planned)
    tensors = matched(checkpoint.tensors, planned.state_dict(), f"timm/{name}{_described(settings)}")
    module = _create(timm, name, settings)
    module.load_state_dict(tensors)
    return Built(module.eval(), {"x": (shape, torch.float32)}, precision_notice(tensors.values()))


def _defaults(timm: Any, name: str) -> Any:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        raise rejected(f"timm {timm.__version__} has no network {architecture!r}.{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = list(timm.list_pretrained(f"{architecture}.*"))[:10]
        raise rejected(f"timm {timm.__version__} does not know {name!r}. It knows {', '.join(tags)}.") from error


def _shape(options: ReadOptions, defaults: Any) -> tuple[int, ...]:
    shapes = dict(map(parse_input_shape, options.input_shape))
    if not shapes:
        channels, height, width = defaults.input_size
        return 1, channels, height, width
    if len(shapes) > 1 or not {None, "x"} >= set(shapes):
        raise rejected("a network of timm has one input, `x`: give one `input_shape`, as `1,3,224,224`")
    (shape,) = shapes.values()
    if len(shape) != 4:
        raise rejected(f"a network of timm takes images: `input_shape` has four sizes, as `1,3,224,224`, not {shape}")
    return shape


def _classes(checkpoint: Checkpoint, defaults: Any) -> int | None:
    """The rows of the file's classifier, where timm says what it is called."""
    name = defaults.classifier if isinstance(defaults.classifier, str) else next(iter(defaults.classifier or ()), "")
    found = [each for each in checkpoint.tensors if f".{each}".endswith(f".{name}.weight")] if name else []
    tensor = checkpoint.tensors[min(found, key=len)] if found else None  # inner layers may end in the same name
    return tensor.shape[0] if tensor is not None and tensor.dim() > 0 else None


def _create(timm: Any, name: str, settings: Mapping[str, Any]) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **settings)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise rejected(f"timm cannot build {name}{_described(settings)}: {reason}") from error
    return module


def _described(settings: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name} {value}' for name, value in settings.items())}" if settings else ""
