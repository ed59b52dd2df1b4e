"""What an engine may reach, written out: one profile for each kind of work. Everything not named here is refused.

A run also gets its own folders, the files its command names, the Python libraries and our `models` and `worker`; see
`sandbox.py`. What is forbidden to all alike (sockets, other processes, mounts …) is in `seccomp.py`.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, replace

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
"""Never `bin`: a program that can be read can be run by the loader."""

SYSTEM_FACTS = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self",
    "/proc/stat",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
)
"""Of these, `/proc/self` is the engine's own: what it starts has none."""

HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Profile:
    """`readable` (patterns) and `writable` are files and folders; those that a machine does not have are left out.

    `devices` are patterns of device files, to be read, written and controlled; `programs` are names of what may be
    started beside the interpreter, looked up in `PROGRAM_FOLDERS` and `COMPILERS_OWN`. `processes` counts the engine
    itself, and those at the same time; threads have a limit of their own, that of the run. `network`: TCP over a
    loopback of its own. `team`: so many of the processes train together.
    """

    name: str
    readable: tuple[str, ...]
    writable: tuple[str, ...]
    devices: tuple[str, ...]
    programs: tuple[str, ...]
    processes: int
    network: bool = False
    team: int = 1

    def for_team(self, size: int) -> Profile:
        """The same for an engine that trains with `size - 1` processes beside it."""
        return replace(self, processes=self.processes + size - self.team, team=size)


PROGRAM_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/bin", "/usr/bin", "/bin")
COMPILERS_OWN = (
    "/usr/lib*/gcc/x86_64*/*",
    "/usr/libexec/gcc/x86_64*/*",
    f"{sysconfig.get_path('platlib')}/triton/backends/nvidia/bin",
)
"""Patterns of folders with programs that compilers start."""

LOADER = Profile(
    name="loader",
    readable=(*SYSTEM_LIBRARIES, *SYSTEM_FACTS),
    writable=HARMLESS_DEVICES,
    devices=(),
    programs=(),
    processes=1,
)
"""Opens an upload: threads, and no process beside itself."""

BASE = replace(LOADER, name="base", processes=8)
"""A job on the CPU: also fresh processes of the interpreter, which reload the files that it wrote."""

HEADERS = ("/usr/include", "/usr/local/include", "/usr/libexec/gcc", sysconfig.get_path("include"))
"""Of the system and of Python; some compilers keep parts of themselves beside theirs."""

COMPILE = replace(
    BASE,
    name="compile",
    readable=(*BASE.readable, *HEADERS),
    programs=(
        *("cc", "c++", "gcc", "g++", "as", "ld", "ld.bfd", "ld.gold"),
        *("cc1", "cc1plus", "collect2", "lto-wrapper"),
    ),
    processes=32,
)
"""A job that compiles kernels: compiler, assembler and linker, and never a shell."""

CUDA = replace(
    BASE,
    name="cuda",
    readable=(
        *BASE.readable,
        *("/usr/local/cuda", "/usr/local/nvidia", "/proc/devices", "/proc/driver/nvidia"),
        *("/sys/bus/pci/devices", "/sys/devices/pci0000:00", "/sys/module/nvidia"),
    ),
    devices=("/dev/nvidia*", "/dev/nvidia-caps/*"),
)
"""A job on an NVIDIA device. All that the driver offers on its device files stays reachable."""

COMPILE_CUDA = replace(
    CUDA,
    name="compile_cuda",
    readable=(*CUDA.readable, *HEADERS),
    programs=(*COMPILE.programs, "ptxas", "ptxas-blackwell"),
    processes=COMPILE.processes,
)
"""The same for an NVIDIA device: also Triton's assembler, and the compiler for what starts its kernels."""

DDP = replace(
    BASE,
    name="ddp",
    readable=(*BASE.readable, "/sys/bus/pci/devices", "/sys/bus/pci/devices/*/class"),
    network=True,
)
"""A job that trains in several processes, which talk over TCP inside a network with nothing in it but loopback."""

DDP_CUDA = replace(CUDA, name="ddp_cuda", readable=(*CUDA.readable, *DDP.readable), network=True)
"""The same on several NVIDIA devices."""

PROFILES = {profile.name: profile for profile in (BASE, LOADER, COMPILE, COMPILE_CUDA, CUDA, DDP, DDP_CUDA)}
