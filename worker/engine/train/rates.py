"""How fast a step moves: the learning rate over a training."""

from __future__ import annotations

import math

from models.spec_optimizer import USUAL_WARM_UP, RateSchedule


def learning_rate_at(
    step: int, steps: int, peak: float, schedule: RateSchedule = "one_cycle", warm_up: float = USUAL_WARM_UP
) -> float:
    """Of step `step` (from 0) of `steps`: a linear rise to `peak` over the share `warm_up`, then `schedule`.

    `one_cycle` (Smith and Topin, 2017) and `cosine` (Loshchilov and Hutter, 2017) fall to 0 as half a cosine, `linear`
    as a line; `constant` stays; `step` is a tenth from half and a hundredth from three quarters of all steps on (He et
    al., 2016).
    """
    rising = max(1, round(warm_up * steps)) if warm_up > 0 else 0
    if step < rising:
        return peak * (step + 1) / rising
    fallen = (step - rising) / max(1, steps - rising)
    match schedule:
        case "one_cycle" | "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * fallen))
        case "linear":
            return peak * (1.0 - fallen)
        case "constant":
            return peak
        case "step":
            return peak * (1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01)
