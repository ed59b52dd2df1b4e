"""Data sets: upload, show, list, delete."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.deps import After, CallerDep, Limit, ServiceDep, Wait
from api.errors import problems_of
from api.routes.models import LOCATION, RAW_BODY, UPLOAD_PROBLEMS, FromUpload, UploadName
from api.services import completed, uploads
from api.tus import ReprDigest
from api.waiting import look_until
from models.errors import Code
from models.statuses import UploadStatus
from models.tables import Dataset
from models.views import DatasetPage, DatasetView

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.put("", status_code=201, include_in_schema=False)  # what `curl -T FILE` sends
@router.post(
    "",
    operation_id="create_dataset",
    status_code=201,
    responses={**LOCATION, **UPLOAD_PROBLEMS},
    openapi_extra=RAW_BODY,
)
async def create_dataset(
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: CallerDep,
    name: UploadName = None,
    upload: FromUpload = None,
    digest: ReprDigest = None,
) -> DatasetView:
    """Upload a data set: the raw body is the file. Its format is told by its bytes (`/capabilities` lists them). It is
    inspected next."""
    limit = service.settings.max_dataset_bytes
    if upload is not None:
        row = await completed.use(service, request, Dataset, caller, upload, name, limit)
    else:
        row = await uploads.accept(service, request, Dataset, caller, name, limit)
    response.headers["Location"] = f"/datasets/{row.id}"
    assert isinstance(row, Dataset)
    return uploads.dataset_view(row)


@router.get("", operation_id="list_datasets", responses=problems_of(Code.BAD_REQUEST))
def list_datasets(service: ServiceDep, caller: CallerDep, limit: Limit = 50, after: After = None) -> DatasetPage:
    """Your data sets, newest first."""
    return uploads.dataset_page(service, caller.tenant, limit, after)


@router.get("/{dataset_id}", operation_id="get_dataset", responses=problems_of(Code.NOT_FOUND))
async def get_dataset(dataset_id: str, service: ServiceDep, caller: CallerDep, wait: Wait = 0) -> DatasetView:
    """One data set. With `wait`, the answer comes when its inspection has ended."""
    row = await look_until(
        service.watch,
        dataset_id,
        lambda: uploads.get(service, Dataset, caller.tenant, dataset_id),
        lambda found: bool(found.status != UploadStatus.INSPECTING),
        wait,
    )
    return uploads.dataset_view(row)


@router.delete(
    "/{dataset_id}", operation_id="delete_dataset", status_code=204, responses=problems_of(Code.NOT_FOUND, Code.IN_USE)
)
def delete_dataset(dataset_id: str, service: ServiceDep, caller: CallerDep) -> None:
    """Delete a data set that no job names."""
    uploads.remove(service, Dataset, caller, dataset_id)
