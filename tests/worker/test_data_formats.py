"""The libraries that read data run where uploads are opened: confined, without another process or socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engine.data import reader
from tests.engine.data.forms import ARRAY_FORMS, IMAGE_FORMS, Array, picture
from worker import sandbox
from worker.profiles import BASE, LOADER, Profile
from worker.sandbox import Limits, Sandbox


@pytest.mark.parametrize("profile", [LOADER, BASE], ids=lambda profile: profile.name)
def test_every_format_is_read_in_the_sandbox(tmp_path: Path, profile: Profile) -> None:
    root, job = tmp_path / "run", tmp_path / "run" / "job"
    job.mkdir(parents=True)
    arrays: dict[str, Array] = {
        "x": np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32),
        "y": np.arange(20) % 2,
    }
    images = [picture(value) for value in range(20)]
    files = [write(root / f"arrays {form}", arrays) for form, write in ARRAY_FORMS.items()]
    files += [write(root / f"images {form}", images, [0, 1] * 10) for form, write in IMAGE_FORMS.items()]
    command = [sys.executable, "-P", reader.__file__, "each", *map(str, files)]
    environment = {"HOME": str(job), "TMPDIR": str(job), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = sandbox.start(command, environment, Sandbox(profile, root, (job,), Limits(cpu_seconds=120, tasks=20)))
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    formats = [inspection["format"] for inspection in json.loads(output)]
    folders = ["image_folder", "image_folder", "webdataset", "parquet", "tfrecord"]
    assert formats == [*(form.split()[0] for form in ARRAY_FORMS), *folders]
    assert list(job.iterdir()) == []


def test_the_libraries_that_read_data_are_loaded_for_their_files_alone() -> None:
    """Neither in the service, nor in an engine that opens something else."""
    program = (
        "import sys, api.app, worker.service, worker.upload, models.formats\n"
        "import worker.engine.data.inspect\n"
        "print([name for name in ('h5py', 'pyarrow') if name in sys.modules])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
