"""The rules of the house that a machine can keep."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from models.rules import FOLLOWS
from models.spec import Step
from models.spec_types import Strict
from worker.engine.checkpoint import REPLAY
from worker.engine.pipeline import STEPS

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = [path for top in ("models", "api", "worker", "client", "deploy") for path in (ROOT / top).rglob("*.py")]

FORBIDDEN = re.compile(
    r"torch\.jit\.load|weights_only *= *False|\bpickle\.loads?\(|extractall\(|shell *= *True"
    r"|(?<![\w.`])eval\(|(?<![\w.`])exec\("
)
EXPORT_LOAD = re.compile(r"torch\.export\.load\(")
READS_OUR_OWN_BYTES = {"worker/engine/measure/session.py", "client/modelpress/network_file.py"}


def test_spec_rules_folders_and_pipeline_agree_on_the_steps() -> None:
    classes = set(_classes(Step))
    names = {get_args(cls.model_fields["step"].annotation)[0] for cls in classes}
    assert set(STEPS) == classes
    assert set(FOLLOWS) == names
    assert {record.partition(" ")[0] for record in REPLAY} == names - {"sensitivity"}  # it changes nothing
    for cls, code in STEPS.items():
        folder = ROOT / Path(*code.__module__.split("."))
        assert folder.with_suffix(".py").name == "step.py", f"{cls.__name__} lives in a step.py"


def _classes(union: Any) -> Iterator[type[Strict]]:
    if isinstance(union, type):
        yield union
    else:
        for choice in get_args(union):
            if isinstance(choice, type | UnionType) or get_origin(choice) is not None:
                yield from _classes(choice)


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_nothing_runs_the_code_of_an_upload() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in PRODUCT
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN.search(line)
    }
    assert not found


def test_only_readers_of_our_own_files_call_torch_export_load() -> None:
    callers = {str(path.relative_to(ROOT)) for path in PRODUCT if EXPORT_LOAD.search(path.read_text())}
    assert callers <= READS_OUR_OWN_BYTES


def test_packages_hold_a_docstring_and_nothing_else() -> None:
    for path in PRODUCT:
        if path.name == "__init__.py" and "modelpress" not in path.parts:
            text = path.read_text().strip()
            assert re.fullmatch(r'"""[^"]*"""', text), path
