"""The JSON of a `.pt2` as typed classes (torch/_export/serde/schema.py, major version 8).

Only what we read is declared. Unknown fields of a record are ignored, because torch adds descriptive ones between minor
versions; an unknown kind of argument or specification is refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from worker.engine.ingest.rejected import rejected

_NOT_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_EXPRESSION = re.compile(r"(?!.*__)[A-Za-z0-9_ (),='*+/<>-]{1,4000}")


def _float(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _expression(text: str) -> str:
    if not _EXPRESSION.fullmatch(text):
        raise ValueError("not a symbolic size")
    return text


def _none(value: Any) -> Any:
    """Torch before 2.7 wrote an empty list for true, the only value there is."""
    return True if value == [] else value


Name = Annotated[str, Field(min_length=1, max_length=1024)]
Int = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Float = Annotated[float, BeforeValidator(_float)]
IsNone = Annotated[bool, BeforeValidator(_none)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Choice(BaseModel):
    """A tagged union: an object with exactly one key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="after")
    def _exactly_one(self) -> Choice:
        if len(self.model_fields_set) != 1 or self.value is None:
            raise ValueError("exactly one kind must be given")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        return getattr(self, self.kind)


class Hint(Choice):
    as_int: Int | None = None
    as_bool: bool | None = None
    as_float: Float | None = None


class SymbolicExpression(Record):
    """Never evaluated: only a bare symbol is recognised, by its text."""

    expr_str: Annotated[str, AfterValidator(_expression)]
    hint: Hint | None = None


class SymbolicInt(Choice):
    as_expr: SymbolicExpression | None = None
    as_int: Int | None = None


class TensorMeta(Record):
    dtype: int
    sizes: Annotated[list[SymbolicInt], Field(max_length=16)]
    strides: Annotated[list[SymbolicInt], Field(max_length=16)]
    storage_offset: SymbolicInt
    requires_grad: bool
    layout: int


class TensorName(Record):
    name: Name


class IntOrName(Choice):
    as_name: Name | None = None
    as_int: Int | None = None


class FloatOrName(Choice):
    as_name: Name | None = None
    as_float: Float | None = None


class BoolOrName(Choice):
    as_name: Name | None = None
    as_bool: bool | None = None


class OptionalTensor(Choice):
    as_tensor: TensorName | None = None
    as_none: IsNone | None = None


class SubGraph(Record):
    name: Name
    graph: Graph


class Argument(Choice):
    """What an operator is given. Kinds that no operator of ours takes (pickled objects, operators) are not declared."""

    as_none: IsNone | None = None
    as_tensor: TensorName | None = None
    as_tensors: list[TensorName] | None = None
    as_int: Int | None = None
    as_ints: list[Int] | None = None
    as_float: Float | None = None
    as_floats: list[Float] | None = None
    as_string: Annotated[str, Field(max_length=200)] | None = None
    as_sym_int: IntOrName | None = None
    as_sym_ints: list[IntOrName] | None = None
    as_sym_float: FloatOrName | None = None
    as_sym_floats: list[FloatOrName] | None = None
    as_sym_bool: BoolOrName | None = None
    as_sym_bools: list[BoolOrName] | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: dict[str, Any] | None = None
    as_bool: bool | None = None
    as_bools: list[bool] | None = None
    as_graph: SubGraph | None = None
    as_optional_tensors: list[OptionalTensor] | None = None
    as_optional_tensor: OptionalTensor | None = None


class NamedArgument(Record):
    name: Annotated[str, Field(max_length=200)]
    arg: Argument


class Node(Record):
    target: Annotated[str, Field(max_length=1024)]
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: dict[str, str] = {}


class Graph(Record):
    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class UserInput(Record):
    arg: Argument


class ParameterInput(Record):
    arg: TensorName
    parameter_name: Name


class BufferInput(Record):
    arg: TensorName
    buffer_name: Name


class TensorConstantInput(Record):
    arg: TensorName
    tensor_constant_name: Name


class ConstantInput(Record):
    name: str


class InputSpec(Choice):
    user_input: UserInput | None = None
    parameter: ParameterInput | None = None
    buffer: BufferInput | None = None
    tensor_constant: TensorConstantInput | None = None
    constant_input: ConstantInput | None = None


class UserOutput(Record):
    arg: Argument


class Mutation(Record):
    arg: TensorName


class OutputSpec(Choice):
    user_output: UserOutput | None = None
    buffer_mutation: Mutation | None = None
    user_input_mutation: Mutation | None = None
    parameter_mutation: Mutation | None = None


class Signature(Record):
    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class CallSignature(Record):
    in_spec: Annotated[str, Field(max_length=1 << 20)]
    out_spec: Annotated[str, Field(max_length=1 << 20)]


class CallEntry(Record):
    fqn: str
    signature: CallSignature | None = None


class GraphModule(Record):
    graph: Graph
    signature: Signature
    module_call_graph: Annotated[list[CallEntry], Field(min_length=1)]


class SchemaVersion(Record):
    major: int
    minor: int


class Version(Record):
    """Read first, so that another major version is named instead of failing field by field."""

    schema_version: SchemaVersion


class ExportedProgram(Record):
    """`guards_code` (source text) and `range_constraints` are not declared: nothing here reads them."""

    graph_module: GraphModule


class Payload(Record):
    path_name: Annotated[str, Field(max_length=100)]
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Record):
    config: dict[Annotated[str, Field(min_length=1, max_length=512)], Payload]


_Record = TypeVar("_Record", bound=BaseModel)


def parse(record: type[_Record], text: bytes, member: str) -> _Record:
    """Read JSON as `record`. Raises `Failure` (network_rejected) that names the first field at fault."""
    try:
        return record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200] or "the document"
        raise rejected(f"{member} does not follow the torch.export schema at {place}: {first['msg']}") from error
