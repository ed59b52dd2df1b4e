"""`python requirements.py EXTRA…`, in the folder of pyproject.toml: what an image needs, one requirement a line.

With it an image installs what the project needs before it copies the project, and keeps that while only code changes.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str, *extras: str) -> list[str]:
    """Of the project itself and of some extras. Raises `KeyError` when there is no such extra."""
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text(), *sys.argv[1:])))
