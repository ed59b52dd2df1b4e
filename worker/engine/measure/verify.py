"""The gate: a file leaves only when a fresh process with the stock runtime computes from it what the engine computes.

Float files must agree within 1e-4 of each output's largest magnitude. Runtimes fuse and reorder single-precision
sums, which costs up to 1e-6 on the test networks and grows with depth; a wrong weight, axis or epsilon costs far more.
8-bit files must reach, in every output, 25 dB against the simulation or the same class for 98.5 % of the samples:
kernels round ties and intermediate sums their own way, and one step of 1/255 at an early layer reaches every output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.report import Verification
from worker.engine.measure.compare import max_difference, relative_difference, sqnr_db, top1_agreement
from worker.engine.measure.runtime import FreshProcess

FLOAT_TOLERANCE = 1e-4
INTEGER_SQNR_DB = 25.0
INTEGER_AGREEMENT = 0.985


def verify(
    path: Path,
    inputs: Sequence[Tensor],
    engine_outputs: Sequence[Tensor],
    folder: Path,
    *,
    integer: bool,
    unpacks_to: nn.Module | None = None,
) -> Verification:
    """Run the file on `inputs` and hold it against what the engine computed for them.

    `integer` says that the file computes in 8 bits, for any format. Every weight in a packed file must be that of
    `unpacks_to`, bit for bit. Raises `Failure(VERIFICATION_FAILED)`.
    """
    with FreshProcess(folder) as process:
        found, runtime = process.run(path, inputs)
        if unpacks_to is not None:
            _require_same_bits(path, process.digests(path), unpacks_to)
    if len(found) != len(engine_outputs):
        raise Failure(
            Code.VERIFICATION_FAILED,
            f"{path.name} has {len(found)} outputs where the engine has {len(engine_outputs)}",
            where=path.name,
        )
    relative = relative_difference(engine_outputs, found)
    ratio = sqnr_db(engine_outputs, found)
    agreements = [top1_agreement(a, b) for a, b in zip(engine_outputs, found, strict=True)]
    agreement = min((value for value in agreements if value is not None), default=None)
    if integer:
        passed = all(
            sqnr_db([a], [b]) >= INTEGER_SQNR_DB or (same is not None and same >= INTEGER_AGREEMENT)
            for a, b, same in zip(engine_outputs, found, agreements, strict=True)
        )
        shown = f"{ratio:.1f} dB of at least {INTEGER_SQNR_DB:.0f}, agreement {agreement}"
    else:
        passed = relative <= FLOAT_TOLERANCE
        shown = f"relative difference {relative:.2g} of at most {FLOAT_TOLERANCE:g}"
    if not passed:
        raise Failure(
            Code.VERIFICATION_FAILED, f"{path.name} does not compute what the engine does: {shown}", where=path.name
        )
    return Verification(
        artifact=path.name,
        reloaded=True,
        runtime=runtime,
        max_abs_diff_vs_engine=max_difference(engine_outputs, found),
        sqnr_db_vs_engine=round(ratio, 2),
        top1_agreement_vs_engine=agreement,
    )


def _require_same_bits(path: Path, digests: Mapping[str, str], network: nn.Module) -> None:
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    for name, digest in digests.items():
        content = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8) if name in tensors else None
        if content is None or hashlib.sha256(content.numpy().tobytes()).hexdigest() != digest:
            raise Failure(
                Code.VERIFICATION_FAILED, f"{path.name} does not hold the engine's {name}, bit for bit", where=path.name
            )
