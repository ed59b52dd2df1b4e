"""The package from where people stand: beside a `models` folder of their own, and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("modelpress")


def _python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _foreign_folder(folder: Path) -> Path:
    """A person's own repository whose packages have the names of ours."""
    for name in ("models", "api", "worker", "deploy"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    (folder / "models" / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    return folder


def test_importing_the_package_brings_neither_torch_nor_numpy_nor_the_service(tmp_path: Path) -> None:
    code = (
        "import sys, modelpress, modelpress.cli\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'models', 'api', 'worker', 'deploy', 'fastapi', 'celery')"
        " if name in sys.modules])"
    )
    assert _python(code, tmp_path) == "[]"


def test_the_client_works_beside_foreign_packages_of_the_same_names(tmp_path: Path) -> None:
    folder = _foreign_folder(tmp_path)
    code = (
        "from modelpress import Client, prepare\nimport models.net, torch\n"
        "print(models.__file__); print(len(prepare(models.net.make(), torch.randn(2, 6))) > 1000)"
    )
    assert _python(code, folder).splitlines() == [str(folder / "models" / "__init__.py"), "True"]


def test_the_command_prepares_a_network_of_a_foreign_models_package(tmp_path: Path) -> None:
    folder = _foreign_folder(tmp_path)
    for source in ("models.net:make", "models/net.py:make"):
        done = subprocess.run(
            [COMMAND, "prepare", source, "-o", "net.pt2", "--example", "1,6"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "net.pt2").stat().st_size > 1000
        (folder / "net.pt2").unlink()


def test_prepare_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    folder = _foreign_folder(tmp_path)
    for arguments, said in (
        (("models.nets:make", "--example", "1,6"), "There is no module models.nets"),
        (("models.net:made", "--example", "1,6"), "models.net has no made"),
        (("models.net:make",), "needs example inputs"),
        (("models.net:make", "--example", "1,six"), "--example 1,six is not a shape"),
        (("models.net:make", "--example", "1,7"), "cannot be exported"),
        (("models/none.py:make", "--example", "1,7"), "There is no file models/none.py"),
    ):
        done = subprocess.run([COMMAND, "prepare", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_command_the_command_explains_itself_with_status_2(tmp_path: Path) -> None:
    done = subprocess.run([COMMAND], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: modelpress" in done.stderr


def test_a_service_that_is_not_there_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "--url", "http://127.0.0.1:9", "jobs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Cannot reach http://127.0.0.1:9" in done.stderr
    assert "make serve" in done.stderr
