"""What an exception means for a job."""

from __future__ import annotations

import errno
import re

import torch

from models.errors import Code, Failure


def as_failure(error: Exception) -> Failure:
    """The code of what went wrong; anything unforeseen is `internal`, its traceback in the log."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(
            Code.OUT_OF_GPU_MEMORY,
            f"the device has too little memory for this network and batch size{_needed_and_free(error)}",
        )
    if lacks_memory(error):
        return Failure(Code.OUT_OF_MEMORY, "the process has too little memory for this network and batch size")
    if _is_full_disk(error):
        return Failure(Code.DISK_FULL, "no space is left for the job's files")
    return Failure(Code.INTERNAL, f"{type(error).__name__}: {str(error)[:500]}")


def lacks_memory(error: Exception) -> bool:
    """Of this machine; torch has words for it alone."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """What it says, in 200 characters at most; its kind where it says nothing."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def as_not_running(error: Exception, otherwise: Failure) -> Failure:
    """What a trial that ended with `error` means: too little memory is that, whatever was tried; else `otherwise`."""
    found = as_failure(error)
    return found if found.code in (Code.OUT_OF_MEMORY, Code.OUT_OF_GPU_MEMORY) else otherwise


def _needed_and_free(error: torch.OutOfMemoryError) -> str:
    """What torch asked the device for, and what was left of it; nothing where torch does not say."""
    said = re.search(r"Tried to allocate ([\d.]+ \w+)\..* of which ([\d.]+ \w+) is free", str(error), re.DOTALL)
    return f": it needed {said[1]} more, and {said[2]} were available" if said else ""


def _is_full_disk(error: Exception) -> bool:
    """Also where a library wraps the system's error in words, as safetensors does."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)
