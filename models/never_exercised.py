"""Code that no test of this version has run, for want of the hardware: said in the README and by `/capabilities`."""

from __future__ import annotations

NEVER_EXERCISED = (
    "A job on a CUDA device, confined by the profile `cuda`: scores, training and calibration there",
    "Training on CUDA in float32 and TF32",
    "Training on CUDA in bfloat16 and float16 under autocast, float16 with a scaled loss",
    "Training on CUDA with channels last",
    "cuDNN's autotuning",
    "Batches to a CUDA device through pinned memory, and images changed there",
    'Speed measured on CUDA (`"speed": "auto"`)',
    "Training on several CUDA devices over NCCL, confined by the profile `ddp_cuda`",
    "Training on CUDA through compiled kernels, confined by the profile `compile_cuda`",
    "A training on CUDA that is interrupted and goes on, with that device's random numbers",
    "`out_of_gpu_memory`",
    "The GPU profile of `docker-compose.yml`",
)
"""One path a row. A row goes when a test has run its path on the hardware."""
