"""`torch.export` done as the service needs it, and its failures said in a line. Imports torch."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from modelpress.outcomes import PrepareError

_MESSAGE_LIMIT = 600
_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def export_program(module: nn.Module, example_inputs: Any) -> ExportedProgram:
    """Export in eval mode with a free batch size; `module` keeps its mode, its tensors and its hooks.

    Raises PrepareError.
    """
    inputs = _as_tensors(example_inputs)
    if isinstance(inputs, dict):
        inputs = _by_position(module, inputs)
    with _eval_mode(module), _quiet():
        program = _export(module, inputs, repeats=2 if _batch(inputs) == 1 else 1)
        if _fixed_batch(program) is not None:
            # A size of the network may equal the batch by chance; another batch tells it from a real constraint.
            program = _export(module, inputs, repeats=5)
    if (size := _fixed_batch(program)) is not None:
        raise PrepareError(
            f"The network runs only with a batch of {size}: something in forward() uses the batch size as a plain "
            "number (int(…), a Python list or loop, a buffer of that size). Use x.shape[0] or -1 there."
        )
    _check_output(program)
    _compact(program)
    _strip(program)
    return program


def _as_tensors(example_inputs: Any) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Contiguous copies: an export keeps the whole storage of a view."""

    def tensor(value: Any, where: str) -> Tensor:
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise PrepareError(f"{where} is a {type(value).__name__}; every input must be one tensor.") from error
        if value.dim() == 0:
            raise PrepareError(f"{where} has no dimensions; dimension 0 of every input is the batch.")
        copy: Tensor = value.detach().clone(memory_format=torch.contiguous_format)
        return copy

    inputs: tuple[Tensor, ...] | dict[str, Tensor]
    if isinstance(example_inputs, Mapping):
        inputs = {name: tensor(value, f"Input {name!r}") for name, value in example_inputs.items()}
    elif isinstance(example_inputs, Sequence):
        inputs = tuple(tensor(value, f"Input {i}") for i, value in enumerate(example_inputs))
    else:
        inputs = (tensor(example_inputs, "The input"),)
    if not inputs:
        raise PrepareError("prepare() needs at least one input tensor.")
    sizes = [tuple(value.shape) for value in _values(inputs)]
    if len({shape[0] for shape in sizes}) > 1:
        raise PrepareError(f"Dimension 0 of every input is the batch and must be the same; these are {sizes}.")
    if sizes[0][0] == 0:
        raise PrepareError("The example batch is empty.")
    return inputs


def _values(inputs: tuple[Tensor, ...] | dict[str, Tensor]) -> list[Tensor]:
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def _batch(inputs: tuple[Tensor, ...] | dict[str, Tensor]) -> int:
    return _values(inputs)[0].shape[0]


def _by_position(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Named inputs in `forward`'s order where they are its first arguments: every runtime can call that export."""
    names = [name for name in inspect.signature(module.forward).parameters if name in inputs]
    first = list(inspect.signature(module.forward).parameters)[: len(inputs)]
    return tuple(inputs[name] for name in names) if names == first else inputs


def _export(module: nn.Module, inputs: tuple[Tensor, ...] | dict[str, Tensor], repeats: int) -> ExportedProgram:
    def repeated(value: Tensor) -> Tensor:
        return value.repeat(repeats, *[1] * (value.dim() - 1))

    positional = () if isinstance(inputs, dict) else tuple(map(repeated, inputs))
    named = {name: repeated(value) for name, value in inputs.items()} if isinstance(inputs, dict) else {}
    free_batch: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for value in (*positional, *named.values()):
        free_batch[value] = {0: Dim.AUTO}
    try:
        return torch.export.export(module, positional, named, dynamic_shapes=free_batch)
    except Exception as error:  # torch.export raises anything, from its own errors to those of the network's code
        raise PrepareError(_explained(module, error, _batch(inputs) * repeats)) from error


def _explained(module: nn.Module, error: Exception, batch: int) -> str:
    reason = str(error).strip().split("\n\n")[0] or type(error).__name__
    if len(reason) > _MESSAGE_LIMIT:
        reason = reason[:_MESSAGE_LIMIT] + " …"
    text = f"{type(module).__name__} cannot be exported (tried with a batch of {batch}). {reason}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != "<string>" and not frame.filename.startswith((_TORCH, _HERE))
    ]
    if frames:
        text += f"\nAt {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}: {(frames[-1].line or '')[:200]}"
    if "data-dependent" in reason:
        text += (
            "\nforward() takes a path, or a number, from the values of a tensor; use torch.where or tensor arithmetic."
        )
    return text


def _fixed_batch(program: ExportedProgram) -> int | None:
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        is_input = node.op == "placeholder" and node.name in names and isinstance(value, Tensor)
        if is_input and is_concrete_int(value.shape[0]):
            return int(value.shape[0])
    return None


def _check_output(program: ExportedProgram) -> None:
    for spec in _specs(program.call_spec.out_spec):
        if spec.type not in (None, tuple, list, dict) and not spec.is_leaf():
            raise PrepareError(
                f"forward() returns a {spec.type.__name__}; the service reads tensors in tuples, lists and dicts. "
                "Wrap the network so that it returns the tensors you need."
            )


def _specs(spec: Any) -> Iterator[Any]:
    yield spec
    for child in spec.children():
        yield from _specs(child)


def _compact(program: ExportedProgram) -> None:
    """Copy tensors that are small views of big storages, which would be saved whole. Tied ones stay tied."""
    sharers: dict[int, set[tuple[Any, ...]]] = {}
    for value in program.state_dict.values():
        sharers.setdefault(value.untyped_storage().data_ptr(), set()).add(_view(value))
    copies: dict[tuple[int, tuple[Any, ...]], Tensor] = {}
    for name, value in program.state_dict.items():
        storage = value.untyped_storage()
        if len(sharers[storage.data_ptr()]) > 1 or storage.nbytes() <= value.numel() * value.element_size():
            continue
        key = (storage.data_ptr(), _view(value))
        if key not in copies:
            copy = value.detach().clone(memory_format=torch.contiguous_format)
            parameter = isinstance(value, nn.Parameter)
            copies[key] = nn.Parameter(copy, value.requires_grad) if parameter else copy
        program.state_dict[name] = copies[key]


def _view(value: Tensor) -> tuple[Any, ...]:
    return (value.storage_offset(), tuple(value.shape), value.stride())


def _strip(program: ExportedProgram) -> None:
    """Drop what is nobody's business: paths and source lines of the person's code, and their samples."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        if any(mode for _, mode in modes):
            module.train(modes[0][1])
        for part, mode in modes:
            part.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints whole graphs when it fails; the exception says it better."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
