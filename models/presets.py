"""Named lists of steps, for people who want a result before they want choices."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from models.spec import Amount, FinetuneStep, Int4Step, PruneStep, QuantizeStep, Step

INT8 = QuantizeStep(step="quantize", ranges="auto", bias_correction=True)
"""It takes a little longer than ranges by extremes, and is closer to the network in floating point."""


class Preset(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    steps: list[Step]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="int8",
            description="8-bit integers, no pruning: about 4 times smaller, needs calibration data, no training.",
            steps=[INT8],
        ),
        Preset(
            name="tiny-download",
            description="Integers of 4 bits for weights, after training alone: the download is about 7 times smaller, "
            "speed and memory stay. No data needed.",
            steps=[Int4Step(step="quantize", scheme="int4")],
        ),
        Preset(
            name="half",
            description="Half of the multiply-accumulates, still floating point: prune, then recover.",
            steps=[PruneStep(step="prune", amount=Amount(macs=0.5)), FinetuneStep(step="finetune", epochs=5)],
        ),
        Preset(
            name="balanced",
            description="A third of the multiply-accumulates removed, recovered, then 8-bit integers.",
            steps=[
                PruneStep(step="prune", amount=Amount(macs=0.35)),
                FinetuneStep(step="finetune", epochs=5),
                INT8,
            ],
        ),
        Preset(
            name="tiny",
            description="Three quarters of the multiply-accumulates removed, recovered at length, then 8-bit integers.",
            steps=[
                PruneStep(step="prune", amount=Amount(macs=0.75)),
                FinetuneStep(step="finetune", epochs=12),
                INT8,
            ],
        ),
    )
}
