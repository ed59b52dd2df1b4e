"""What reading an upload found: the engine writes it, the API shows it, the rules check specs against it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.sizes import Sizes
from models.split_rules import SplitName
from models.texts import Text


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Notice(_Frozen):
    """A warning: a stable code, and a sentence for people."""

    code: str
    message: Text


class TensorInfo(_Frozen):
    """A named tensor. `None` in `shape` is a size that may vary (the batch is dimension 0)."""

    name: Text
    dtype: str
    shape: list[int | None]


class FactorInfo(_Frozen):
    """A layer as `factorize` sees it: the map from `inputs` to `outputs` channels at every position of the kernel (none
    for a linear layer). `input_positions` and `output_positions` are how many there are of either in one sample, over
    all calls; `middle_positions` are rows of the output by columns of the input, with a kernel of both."""

    inputs: int
    outputs: int
    kernel: list[int]
    transposed: bool = False
    input_positions: int
    output_positions: int
    middle_positions: int | None = None


class LayerInfo(_Frozen):
    """One layer. `macs` are multiply-accumulates for one sample; `group` is the pruning group its outputs belong to.
    `factors` is what `factorize` has to know of it; without that, it leaves the layer whole."""

    name: str
    kind: str
    shape: list[int]
    parameters: int
    macs: int
    group: str | None
    prunable: bool
    reason: str | None = None
    factors: FactorInfo | None = None


class GroupInfo(_Frozen):
    """Channels that can only be removed together. `units` is how many such channels there are; `widths` how many output
    channels of those layers that multiply one unit is (a head is many). `heads`: a unit is an attention head.
    `consumers` are the layers whose input features the units are. `whole`: all of it can go, and the network still
    runs without its branch."""

    id: str
    units: int
    layers: list[str]
    widths: list[int] = [1]
    heads: bool = False
    consumers: list[str] = []
    whole: bool = False


NetworkFormat = Literal["pt2", "onnx", "safetensors", "pth", "transformers"]
"""What a network's file is. The last three are weights that came with the name of their architecture."""


class NetworkInspection(_Frozen):
    kind: Literal["network"] = "network"
    format: NetworkFormat
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    parameters: int
    macs: int
    layers: list[LayerInfo]
    groups: list[GroupInfo]
    sizes: Sizes | None = None
    warnings: list[Notice] = []


class LabelInfo(_Frozen):
    """`classes` is the count of distinct labels when they are integers."""

    dtype: str
    shape: list[int]
    classes: int | None = None
    minimum: float | None = None
    maximum: float | None = None


DatasetFormat = Literal["npz", "npy", "safetensors", "image_folder", "webdataset", "hdf5", "parquet", "tfrecord"]
"""What a data set's file is, by its bytes."""


class ImageSizes(_Frozen):
    """Of encoded images, in pixels."""

    minimum_height: int
    maximum_height: int
    minimum_width: int
    maximum_width: int


class DatasetInspection(_Frozen):
    """`inputs` are one sample each (no batch dimension); encoded images are one input of shape [3, None, None]."""

    kind: Literal["dataset"] = "dataset"
    format: DatasetFormat
    samples: int
    inputs: list[TensorInfo]
    labels: LabelInfo | None
    class_names: list[Text] | None = None
    splits: dict[SplitName, int] | None = None
    skipped_samples: int = 0
    image_sizes: ImageSizes | None = None
    warnings: list[Notice] = []

    @property
    def holds_images(self) -> bool:
        """Whether samples are encoded images, which `resize` and `crop` apply to."""
        return [info.shape for info in self.inputs] == [[3, None, None]]
