"""The weights in a file, and whether they are those of an architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from models.inspection import Notice
from worker.engine.ingest.named.pth import Saved, is_tensor, read_pth
from worker.engine.ingest.named.safetensors_file import read_safetensors
from worker.engine.ingest.rejected import rejected, shown

LISTED = 20
"""Names in one message."""
_NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params"),
)
"""Where training scripts keep the weights, smoothed ones before others, as timm takes them."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")
"""What DataParallel, torch.compile and training frameworks put before every name."""
_MAY_MISS = (".num_batches_tracked",)
"""Files from before torch 0.4.1 lack it, and nothing reads it in eval mode."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what a person should know about how they were taken from the file."""

    format: Literal["safetensors", "pth"]
    tensors: dict[str, Tensor]
    notices: tuple[Notice, ...] = ()

    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())


def read_checkpoint(path: Path, kind: Literal["safetensors", "zip"]) -> Checkpoint:
    """Raises `Failure`."""
    if kind == "safetensors":
        return Checkpoint("safetensors", read_safetensors(path.read_bytes()))
    with read_pth(path) as saved:
        return _state_dict(saved)


def _state_dict(saved: Saved) -> Checkpoint:
    where, found = _find(saved.root, ())
    if not found:
        raise rejected("the file holds no tensors by name; save `module.state_dict()` with torch.save")
    tensors = {name: saved.tensor(name, value) for name, value in found.items()}
    left_out = [name for name in (saved.root if where else ()) if name != where[0]]
    left_out += [name for name in _at(saved.root, where) if name not in tensors]
    if not left_out:
        return Checkpoint("pth", tensors)
    place = f"under {'.'.join(map(shown, where))}" if where else "at the top"
    rest = _listed([shown(str(name)) for name in left_out], 10)
    message = (
        f"The weights are those {place}. Left out, and counted nowhere: {rest} "
        f"({saved.unread_bytes():,} bytes of other tensors)."
    )
    return Checkpoint("pth", tensors, (Notice(code="rest_of_file_left_out", message=message),))


def _find(value: Any, where: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Where the weights are, and they."""
    if not isinstance(value, dict) or len(where) > 3:
        return where, {}
    for name in _NESTS:
        inside = _find(value.get(name), (*where, name))
        if inside[1]:
            return inside
    return where, {name: each for name, each in value.items() if isinstance(name, str) and is_tensor(each)}


def _at(value: Any, where: tuple[str, ...]) -> dict[Any, Any]:
    for name in where:
        value = value[name]
    found: dict[Any, Any] = value
    return found


def without_prefix(names: Iterable[str], expected: Iterable[str]) -> int:
    """How many characters stand before every name that stand before none of the expected ones."""
    names, expected, length = list(names), list(expected), 0
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p, length) for n in names)), None):
        if not names or any(name.startswith(prefix) for name in expected):
            break
        length += len(prefix)
    return length


def matched(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors under the architecture's names. Raises `Failure` (network_rejected) with what differs, by name."""
    length = without_prefix(tensors, expected)
    found = {name[length:]: tensor for name, tensor in tensors.items()}
    refuse_differences(
        architecture,
        missing=[name for name in expected if name not in found and not name.endswith(_MAY_MISS)],
        unexpected=[name for name in found if name not in expected],
        shapes={
            name: (list(found[name].shape), list(tensor.shape))
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        },
    )
    refuse_quantized(found[name] for name, tensor in expected.items() if name in found and tensor.is_floating_point())
    return found


def refuse_differences(
    architecture: str,
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Mapping[str, tuple[Any, Any]],
    remedy: str = "",
) -> None:
    """Raises `Failure` (network_rejected) unless there are none. `shapes`: of the file, and of the architecture."""
    described = [f"{shown(name)} {list(file)} in the file, {list(own)} in it" for name, (file, own) in shapes.items()]
    kinds = [
        (" missing", sorted(map(shown, missing))),
        (" that it does not have", sorted(map(shown, unexpected))),
        (" of another shape", described),
    ]
    present = [(what, names) for what, names in kinds if names]
    if present:
        most = LISTED // len(present)
        lists = ". ".join(f"{len(names)}{what}: {_listed(names, most)}" for what, names in present)
        raise rejected(f"the tensors in the file are not those of {architecture}: {lists}.{remedy}")


def refuse_quantized(tensors: Iterable[Tensor]) -> None:
    """Raises `Failure` (network_rejected) for integers where the architecture has floating-point numbers."""
    if any(not tensor.is_floating_point() for tensor in tensors):
        raise rejected("the file holds integers where weights should be: send the network from before it was quantized")


def precision_notice(tensors: Iterable[Tensor]) -> tuple[Notice, ...]:
    """What to say when there are floating-point tensors that are not float32."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()}
    others = sorted(kinds - {"float32"})
    if not others:
        return ()
    message = f"The file holds {' and '.join(others)} numbers; the network computes with them as float32."
    return (Notice(code="converted_to_float32", message=message),)


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
