"""`modelpress prepare` runs the person's own code, on the person's own machine, to make the network."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from modelpress.outcomes import PrepareError


def make_network(source: str) -> Any:
    """`MODULE:NAME` or `FILE.py:NAME` gives what NAME is or makes; anything else is a Hugging Face folder or name.

    Raises PrepareError.
    """
    place, colon, name = source.rpartition(":")
    if not colon:
        return source
    found = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise PrepareError(f"{place} has no {name}.")
        found = getattr(found, part)
    from torch import nn

    network = found if isinstance(found, nn.Module) else found()
    if not isinstance(network, nn.Module):
        raise PrepareError(f"{source} gives a {type(network).__name__}, not an nn.Module.")
    return network


def _import(place: str) -> Any:
    file = Path(place)
    if file.suffix == ".py":
        if not file.is_file():
            raise PrepareError(f"There is no file {place}.")
        sys.path.insert(0, str(file.resolve().parent))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise PrepareError(f"{place} cannot be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise PrepareError(f"There is no module {place} here; give MODULE:FUNCTION or FILE.py:FUNCTION.") from error
        raise


def example_tensors(shapes: list[str]) -> tuple[Any, ...]:
    """Random tensors: `1,3,224,224` normal float32, `1,128:int64` zeros (always a valid index). Raises PrepareError."""
    import torch

    tensors = []
    for text in shapes:
        sizes, _, kind = text.partition(":")
        dtype = getattr(torch, kind or "float32", None)
        try:
            shape = [int(size) for size in sizes.split(",")]
        except ValueError:
            shape = []
        if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
            raise PrepareError(f"--example {text} is not a shape such as 1,3,224,224 or 1,128:int64.")
        tensors.append(torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    return tuple(tensors)
