"""Networks: upload, show, list, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.deps import After, CallerDep, Limit, ServiceDep, Wait
from api.errors import problems_of
from api.services import completed, uploads
from api.tus import ReprDigest
from api.waiting import look_until
from models.errors import Code, Failure, FieldProblem
from models.reading import CLASSES_OF_TIMM, Architecture, Classes, InputShapes, ReadOptions, classes_without_timm
from models.statuses import UploadStatus
from models.tables import Network
from models.views import NetworkDetail, NetworkPage, NetworkView

router = APIRouter(prefix="/models", tags=["models"])

UploadName = Annotated[
    str | None, Query(description="For people; kept to 255 characters, never used as a path. Default: `unnamed`.")
]
FromUpload = Annotated[
    str | None,
    Query(
        description="A complete upload of `/uploads` instead of a body. The same upload again gives the same answer."
    ),
]
ShapesOfInputs = Annotated[
    InputShapes,
    Query(
        description="Sizes of an input that an ONNX file, or a named network, leaves open, the batch first: "
        "`1,3,224,224` for the only input, else `name:1,3,224,224`, once for each. The batch stays free."
    ),
]
NameOfNetwork = Annotated[
    Architecture | None,
    Query(
        description="For a file of weights alone, the network they belong to: `timm/resnet18` and every other name of "
        "timm for safetensors or a `torch.save`d state dict; `transformers`, or `transformers/<class>`, for a zip of "
        "`config.json` and safetensors. No code from the file runs."
    ),
]
NumberOfClasses = Annotated[
    Classes | None,
    Query(description="Of a network of timm. Default: what the file's classifier has. 0: it has no classifier."),
]
UPLOAD_PROBLEMS = problems_of(
    Code.EMPTY_FILE,
    Code.UNKNOWN_FORMAT,
    Code.FORMAT_MISMATCH,
    Code.UNSAFE_PICKLE,
    Code.TORCHSCRIPT_NOT_SUPPORTED,
    Code.LEGACY_FORMAT,
    Code.INVALID_REQUEST,
    Code.BAD_ARCHIVE,
    Code.USE_RAW_BODY,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.TOO_LARGE,
    Code.QUOTA_EXCEEDED,
    Code.CHECKSUM_MISMATCH,
    Code.BAD_REQUEST,
    Code.NOT_FOUND,
    Code.UPLOAD_INCOMPLETE,
    Code.UPLOAD_EXPIRED,
    Code.UPLOAD_INVALID,
    Code.UPLOAD_BUSY,
    Code.BODY_TIMEOUT,
    Code.DISK_FULL,
)
RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The file itself, as `curl -T FILE` sends it; nothing when `upload` names one.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
LOCATION: dict[int | str, dict[str, Any]] = {
    201: {"description": "Stored; its inspection waits", "headers": {"Location": {"schema": {"type": "string"}}}}
}


@router.put("", status_code=201, include_in_schema=False)  # what `curl -T FILE` sends
@router.post(
    "",
    operation_id="create_model",
    status_code=201,
    responses={**LOCATION, **UPLOAD_PROBLEMS},
    openapi_extra=RAW_BODY,
)
async def create_model(
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: CallerDep,
    name: UploadName = None,
    upload: FromUpload = None,
    input_shape: ShapesOfInputs = (),
    arch: NameOfNetwork = None,
    num_classes: NumberOfClasses = None,
    digest: ReprDigest = None,
) -> NetworkView:
    """Upload a network: the raw body is the file. It is inspected next; `GET …?wait=30` tells when."""
    limit = service.settings.max_model_bytes
    if classes_without_timm(arch, num_classes):
        problem = FieldProblem(pointer="/query/num_classes", message=CLASSES_OF_TIMM)
        raise Failure(Code.INVALID_REQUEST, CLASSES_OF_TIMM, problems=(problem,))
    given = ReadOptions(input_shape=input_shape, arch=arch, num_classes=num_classes)
    if upload is not None:
        row = await completed.use(service, request, Network, caller, upload, name, limit, given)
    else:
        row = await uploads.accept(service, request, Network, caller, name, limit, given)
    response.headers["Location"] = f"/models/{row.id}"
    assert isinstance(row, Network)
    return uploads.network_view(row)


@router.get("", operation_id="list_models", responses=problems_of(Code.BAD_REQUEST))
def list_models(service: ServiceDep, caller: CallerDep, limit: Limit = 50, after: After = None) -> NetworkPage:
    """Your networks, newest first, without their layers."""
    return uploads.network_page(service, caller.tenant, limit, after)


@router.get("/{model_id}", operation_id="get_model", responses=problems_of(Code.NOT_FOUND))
async def get_model(model_id: str, service: ServiceDep, caller: CallerDep, wait: Wait = 0) -> NetworkDetail:
    """One network. With `wait`, the answer comes when its inspection has ended."""
    row = await look_until(
        service.watch,
        model_id,
        lambda: uploads.get(service, Network, caller.tenant, model_id),
        lambda found: bool(found.status != UploadStatus.INSPECTING),
        wait,
    )
    return uploads.network_detail(row)


@router.delete(
    "/{model_id}", operation_id="delete_model", status_code=204, responses=problems_of(Code.NOT_FOUND, Code.IN_USE)
)
def delete_model(model_id: str, service: ServiceDep, caller: CallerDep) -> None:
    """Delete a network that no job names."""
    uploads.remove(service, Network, caller, model_id)
