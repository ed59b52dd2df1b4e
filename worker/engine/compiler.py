"""The C++ compiler that `torch.compile` calls: whether there is one, and what it is told.

Nothing here starts a shell, and torch does not either: compiler and assembler are started by name with lists of
arguments, in this process's place for scratch files.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from worker.profiles import PROGRAM_FOLDERS

COMPILER = "g++"
REMEDY = "install a C++ compiler and Python's headers (on Debian: `apt-get install g++ python3-dev`), or leave it out"
_PROGRAM = "#include <Python.h>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"
"""Needs all that a kernel for a CPU needs: compiler, assembler, linker, headers, OpenMP."""
_PATIENCE_SECONDS = 120.0
_SETTINGS: dict[str, Any] = {
    "compile_threads": 1,
    "cpp_cache_precompile_headers": False,  # would start `openssl`
    "cpp.vec_isa_ok": True,  # the processor's word for what it can do: no trial programs
    "fallback_random": True,
}


@functools.cache
def why_not_here(kind: str) -> str | None:
    """What is lacking to compile for a device of this kind, `cpu` or `cuda`; None: nothing. Asked by compiling."""
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        return "there is no Triton here, which torch's own build for CUDA brings"
    with tempfile.TemporaryDirectory() as folder:
        command = [COMPILER, "-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_path('include')}"]
        command += ["-x", "c++", "-", "-o", str(Path(folder, "trial.so"))]
        try:
            subprocess.run(
                command,
                input=_PROGRAM.encode(),
                stderr=subprocess.PIPE,
                check=True,
                timeout=_PATIENCE_SECONDS,
                env=os.environ | _where_programs_are(),
            )
        except OSError as error:
            return f"`{COMPILER}` cannot be started here ({error.strerror})"
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            wrong = next((line for line in said if "error" in line), str(error))
            return f"`{shlex.join(command[:4])}` does not work here ({wrong[:200]})"
    return None


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Inside the block torch compiles in this process, one kernel after another. What it makes stays with the other
    scratch files, and is found again by a later block. Random numbers are those that there would be without; on a CPU
    sums over scattered values are made in one order, so that bits repeat."""
    before = dict(os.environ)
    strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ |= _where_programs_are() | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # else processes start at the import
    if device.type == "cuda":
        os.environ |= {"TRITON_LIBCUDA_PATH": _folder_of_the_driver()}
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        from torch._inductor import config  # takes seconds, and few jobs need it

        with config.patch(_SETTINGS):
            yield
    finally:
        torch.compiler.reset()
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


def _where_programs_are() -> dict[str, str]:
    """A compiler looks there for itself, and for its assembler and linker. Engines have no PATH."""
    return {"PATH": os.pathsep.join(PROGRAM_FOLDERS)}


def _folder_of_the_driver() -> str:
    """Of CUDA's, which is loaded by now; Triton would start `ldconfig` to find it."""
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    return next(
        (os.path.dirname(path) for path in sorted(mapped) if os.path.basename(path).startswith("libcuda.so")), ""
    )
