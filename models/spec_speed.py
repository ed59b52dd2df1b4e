"""How a spec asks for faster training, and for images that are changed a little each time they are seen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from models.spec_types import Strict

Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class Speed(Strict):
    """What makes steps faster, most of it at the price of other roundings. `auto` measures a few steps of each choice
    on a copy of the weights and takes another than the usual one where that is at least a twentieth faster; the report
    has the measurements. Validation is always in float32."""

    precision: Precision | Literal["auto"] = Field(
        default="float32",
        description="`tf32`: float32 with shorter products (CUDA). `bfloat16`, `float16`: under autocast, `float16` "
        "with a scaled loss (Micikevicius et al., 2018); weights and optimizer stay in float32.",
    )
    channels_last: bool | Literal["auto"] = Field(
        default=False, description="Lay images out with their channels last; the same numbers up to rounding."
    )
    cudnn_autotune: bool | Literal["auto"] = Field(
        default=False, description="Let cuDNN try its algorithms for each new shape (CUDA)."
    )
    compile: bool | Literal["auto"] = Field(
        default=False,
        description="Train through kernels that `torch.compile` makes of the network: the same numbers up to rounding, "
        "for the time and the compiler that it takes. Without a compiler on the worker `unsupported_here`. `auto`: "
        "where there is one, in one process, and the steps of the training together with compiling are at least a "
        "twentieth faster.",
    )
    loaders: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        default=1,
        description="Threads that read and decode batches ahead of the steps: the same batches in the same order, "
        "however many there are. In each of several processes. More than the worker has CPUs are `unsupported_here`. "
        "`auto`: where steps wait for batches, twice as many for as long as that is at least a twentieth faster.",
    )
    processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        default=1,
        description="Divide each batch among so many processes, on CUDA one for each device. What is trained is the "
        "same up to rounding, also where BatchNorm learns. More than the worker has devices, or CPUs, are "
        "`unsupported_here`. `auto`: every device of the worker, on a CPU one process.",
    )
    gradients: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="What several processes send each other: `bfloat16` is half of the bytes, and rounds every "
        "gradient, and every sum of them, to 8 bits of precision. Weights, loss and optimizer stay in float32.",
    )

    @model_validator(mode="after")
    def _sent_to_somebody(self) -> Speed:
        if self.gradients != "float32" and self.processes == 1:
            raise ValueError("`gradients` are sent among several `processes`: ask for those too, or leave it out")
        return self


def _all_auto(value: Any) -> Any:
    return dict.fromkeys(Speed.model_fields.keys() - {"gradients"}, "auto") if value == "auto" else value


AnySpeed = Annotated[Speed, BeforeValidator(_all_auto)]


class Augment(Strict):
    """Change the images of a batch before each step, on the device; validation sees them as they are."""

    flip: bool = Field(default=False, description="Mirror every other one, left to right.")
    shift: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="Move by up to so many pixels each way, with zeros at the edge (He et al., 2016)."
    )

    @model_validator(mode="after")
    def _something(self) -> Augment:
        if not self.flip and not self.shift:
            raise ValueError("give `flip` or `shift`, or leave `augment` out")
        return self
