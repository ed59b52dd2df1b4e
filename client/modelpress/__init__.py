"""modelpress from Python: prepare a network, send it, watch the job, load what comes back.

    from modelpress import Client, prepare, load

Importing this package needs no torch; `prepare`, `prepare_data`, `load` and `compress` import it when called.
"""

from __future__ import annotations

from modelpress.client import Client
from modelpress.compression import Result, compress
from modelpress.data_file import prepare_data
from modelpress.job import Job
from modelpress.network_file import load, prepare
from modelpress.offline import check
from modelpress.outcomes import ApiError, DownloadError, JobFailed, ModelpressError, PrepareError, UploadRejected
from modelpress.types import Artifact, Event, JobRecord, Network, StoredData

__all__ = [
    "ApiError",
    "Artifact",
    "Client",
    "DownloadError",
    "Event",
    "Job",
    "JobFailed",
    "JobRecord",
    "ModelpressError",
    "Network",
    "PrepareError",
    "Result",
    "StoredData",
    "UploadRejected",
    "check",
    "compress",
    "load",
    "prepare",
    "prepare_data",
]
