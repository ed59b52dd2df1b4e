"""Ways out of the sandbox, tried by a real engine: all closed, on every profile, and open without it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.messages import CONTROL_QUEUE, queue_of
from tests.worker import escapes
from tests.worker.aims import PROGRAM, REFUSED, WORKS, Aims, found
from tests.worker.fleet import Fleet, until
from worker import landlock, sandbox
from worker.profiles import BASE, CUDA, DDP, LOADER, PROFILES
from worker.sandbox import Limits, Sandbox

OPEN_WITH_A_NETWORK = {"internet_socket", "netlink_socket"}
"""Of a network in which nobody else is: there a port of the machine does not answer, and a pair stays a pair."""
NEEDS_A_NETWORK = pytest.mark.skipif(not sandbox.has_networks(), reason="engines can have no network of their own here")

NEEDS_MORE_THAN_A_USER = {
    *("mount", "change_root", "bpf", "perf_event", "io_uring", "userfaultfd", "new_user_namespace", "become_root"),
    *("clone_into_a_new_user_namespace", "make_a_device", "mark_a_file", "message_queue", "type_into_the_terminal"),
    *("keys_of_the_kernel", "read_the_shadow_file", "trace_the_worker", "read_the_memory_of_the_worker"),
    *("raise_an_interface", "connect_a_pair_to_the_broker", "multipath_tcp_socket", "sctp_socket"),
    *("take_a_file_of_the_worker", "open_the_memory_of_the_worker", "list_the_home_of_root", "open_by_handle"),
}
"""Ways that a machine without a sandbox may close as well."""


AIMLESS = {"blob": "x", "database": "x", "outside": "x", "socket": "x", "worker": "1", "port": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Aims]:
    place = Aims(tmp_path)
    yield place
    place.close()


def assert_all_refused(answers: dict[str, Any], *, network: bool = False) -> None:
    refused = REFUSED | ({"ECONNREFUSED", "EISCONN"} if network else set())
    open_ways = {way for way in escapes.WAYS if answers[way] not in refused}
    assert open_ways == (OPEN_WITH_A_NETWORK if network else set())


def test_without_the_sandbox_the_ways_are_open(place: Aims) -> None:
    done = subprocess.run(place.command("all"), capture_output=True, text=True, check=False)
    answers = found(done.stderr)
    needed = set(escapes.WAYS) - NEEDS_MORE_THAN_A_USER
    assert {way: answers[way] for way in needed if answers[way] != "escaped"} == {}
    assert len(needed) > 30
    assert not place.is_untouched()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_A_NETWORK if PROFILES[name].network else ()) for name in sorted(PROFILES)]
)
def test_every_profile_closes_every_way(place: Aims, name: str) -> None:
    answers = place.run("all", PROFILES[name])
    answers = {way: "EPERM" if answer == "EAGAIN" else answer for way, answer in answers.items()}
    assert_all_refused(answers, network=PROFILES[name].network)
    assert answers["works"] == WORKS
    assert place.is_untouched()


@NEEDS_A_NETWORK
def test_only_where_it_is_set_so_an_engine_shares_the_network_of_the_machine(place: Aims) -> None:
    way = "connect_to_a_port_of_the_machine"
    assert place.run(way, DDP) == {way: "ECONNREFUSED"}
    assert place.run(way, DDP, shares_network=True) == {way: "escaped"}
    assert place.run(way, BASE, shares_network=True) == {way: "EPERM"}


@pytest.mark.parametrize("abi", range(1, landlock.NEWEST_ABI))
def test_what_an_older_landlock_lacks_is_closed_all_the_same(place: Aims, abi: int) -> None:
    answers = place.run("all", landlock_abi=abi)
    assert_all_refused(answers)
    assert answers["works"] == WORKS | {"moved": abi > 1}
    assert place.is_untouched()


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("memory_bomb", "out_of_memory", "more memory than it may"),
        ("memory_bomb_of_many", "out_of_memory", "more memory than it may"),
        ("disk_bomb", "disk_full", "wrote more than it may"),
        ("call_of_another_architecture", "engine_crashed", "system call that no engine may make"),
        ("call_of_x32", "engine_crashed", "system call that no engine may make"),
    ],
)
def test_a_bomb_ends_its_job_with_its_code_in_one_attempt(fleet: Fleet, do: str, code: str, words: str) -> None:
    limits = {"MODELPRESS_ENGINE_MEMORY_BYTES": str(300 << 20), "MODELPRESS_ENGINE_DISK_BYTES": str(100 << 20)}
    fleet.start("device", SUBJECT=PROGRAM.name, **limits)
    job = fleet.wait(fleet.submit_spec(fleet.spec(do, AIMLESS)))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == code
    assert words in job.error["message"]
    assert job.attempt == 1
    until(lambda: not fleet.engines() and not fleet.runs_on_disk(), "nothing to be left")


def test_processes_threads_and_single_requests_have_their_limits(place: Aims) -> None:
    limits = Limits(cpu_seconds=60, memory_bytes=1 << 30, disk_bytes=50 << 20, tasks=100)
    assert place.run("fork_bomb", limits=limits) == {"fork_bomb": BASE.processes - 1}
    assert place.run("thread_bomb", limits=limits) == {"thread_bomb": 99}
    assert place.run("ask_for_a_tebibyte", limits=limits) == {"ask_for_a_tebibyte": "ENOMEM"}
    assert place.run("disk_bomb_of_one_file", limits=limits) == {"disk_bomb_of_one_file": "EFBIG"}


def test_what_opens_an_upload_starts_no_process(place: Aims) -> None:
    assert place.run("fork_bomb", LOADER) == {"fork_bomb": 0}
    assert place.run("thread_bomb", LOADER) == {"thread_bomb": Limits(cpu_seconds=1).tasks - 1}


def _run(command: list[str], confined: Sandbox, **environment: str) -> tuple[int, str]:
    process = sandbox.start(command, environment, confined)
    output, errors = process.communicate()
    return process.returncode, (output + errors).decode()


def test_a_job_may_start_its_own_interpreter_again(place: Aims) -> None:
    code = "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(6 * 7)']))"
    for profile in (BASE, CUDA):
        confined = Sandbox(profile, place.root, (place.job,), Limits(cpu_seconds=60))
        assert _run([sys.executable, "-c", code], confined) == (0, "b'42\\n'\n")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")
def test_only_a_job_that_compiles_may_start_a_compiler(place: Aims) -> None:
    (place.job / "a.c").write_text("#include <math.h>\nint answer(void) { return 42; }\n")
    command = ["gcc", "-shared", "-fPIC", "-o", str(place.job / "a.so"), str(place.job / "a.c")]
    code = f"import subprocess, ctypes; subprocess.run({command!r}, check=True)"
    code += f"; print(ctypes.CDLL({command[4]!r}).answer())"
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(place.job)}
    for profile, works in ((PROFILES["compile"], True), (BASE, False)):
        confined = Sandbox(profile, place.root, (place.job,), Limits(cpu_seconds=60))
        status, said = _run([sys.executable, "-c", code], confined, **environment)
        assert (status == 0) == works, said
        assert said == "42\n" if works else "PermissionError" in said


@pytest.mark.cuda
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA device here")
def test_a_job_on_a_device_computes_there(place: Aims) -> None:
    confined = Sandbox(CUDA, place.root, (place.job,), Limits(cpu_seconds=60))
    code = "import torch; print(torch.ones(3, device='cuda').sum().item())"
    assert _run([sys.executable, "-c", code], confined, HOME=str(place.job)) == (0, "3.0\n")


def test_what_an_engine_needs_is_written_out_and_exists() -> None:
    assert {name: profile.name for name, profile in PROFILES.items()} == {name: name for name in PROFILES}
    assert all(not path.endswith("bin") for profile in PROFILES.values() for path in profile.readable)
    assert not set(BASE.programs) | set(LOADER.programs) | set(CUDA.programs)
    for name in ("compile", "compile_cuda"):
        assert not {"sh", "bash", "dash", "env"} & set(PROFILES[name].programs)


_CONFINED = """
import os, sys
from pathlib import Path
from worker import sandbox
from worker.profiles import PROFILES
root = Path(sys.argv[1])
confined = sandbox.Sandbox(PROFILES[sys.argv[2]], root, (root / "job",), sandbox.Limits(cpu_seconds=60))
libraries = {"LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]}
output, errors = sandbox.start([sys.executable, "-P", *sys.argv[3:]], libraries, confined).communicate()
sys.stdout.write(errors.decode() or output.decode())
"""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _python_for_all(folder: Path) -> Path:
    """The interpreter, its library and our source, copied where every user can read them."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python, library = folder / "bin" / version, folder / "lib" / version
    python.parent.mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), python)
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=left_out)
    for shared in {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libpython" in line
    }:
        shutil.copy(shared, folder / "lib")
    for package in ("worker", "models"):
        (library / "site-packages" / package).mkdir(parents=True)
        for source in (Path(sandbox.__file__).parent.parent / package).glob("*.py"):
            shutil.copy(source, library / "site-packages" / package)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0))
    return python


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("who", ["root, whose engine can be another user", "root, whose engine cannot", "a user"])
def test_an_engine_has_no_capability_and_where_root_starts_it_a_user_of_its_own(reachable: Path, who: str) -> None:
    place = Aims(reachable / "place")
    try:
        python = _python_for_all(reachable / "python")
        program = shutil.copy(PROGRAM, reachable / "escapes.py")
        place.root.chmod(0o700)
        user = 12345 if who == "a user" else 0
        for path in (reachable, *(reachable / "place").rglob("*")):
            os.chown(path, user, user)
        if who == "root, whose engine cannot":
            (reachable / "python").chmod(0o700)

        def confined(*command: str, profile: str = "base") -> str:
            return subprocess.run(
                [str(python), "-c", _CONFINED, str(place.root), profile, *command],
                env={"LD_LIBRARY_PATH": str(reachable / "python" / "lib"), "PYTHONDONTWRITEBYTECODE": "1"},
                user=user,
                group=user,
                extra_groups=[user],
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        command = place.command("all")
        for profile in ("base", "ddp") if sandbox.has_networks() else ("base",):
            status = confined("-c", "print(open('/proc/self/status').read())", profile=profile)
            fields = dict(line.split(":\t", 1) for line in status.strip().splitlines())
            uid = int(fields["Uid"].split()[0])
            assert uid >= 1 << 30 if who == "root, whose engine can be another user" else uid == user
            assert uid == place.job.stat().st_uid
            for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(fields[kind], 16) == 0
            assert fields["NoNewPrivs"] == "1"
            if user == 0 or profile == "ddp":
                assert int(fields["CapBnd"], 16) == 0
            assert fields["Groups"].split() == ([str(user)] if uid == user else [])

            answers = found(confined(str(program), command[-1], profile=profile))
            assert_all_refused(answers, network=profile == "ddp")
            assert answers["works"] == WORKS
        assert place.is_untouched()
    finally:
        place.close()


def test_workers_say_how_far_they_are_confined(fleet: Fleet) -> None:
    fleet.start("device")
    fleet.start("control")
    levels = {row.queue: row.sandbox for row in fleet.registered()}
    assert levels == dict.fromkeys((queue_of("cpu"), CONTROL_QUEUE), sandbox.level())
    assert sandbox.level().startswith(f"landlock abi {landlock.abi()} + seccomp")


def test_a_worker_that_shares_its_network_says_so_in_its_level_and_its_log(fleet: Fleet) -> None:
    fleet.start(
        "device",
        program="tests.worker.old_kernel networks tests.worker.subject_worker",
        MODELPRESS_ALLOW_SHARED_NETWORK="true",
    )
    [row] = fleet.registered()
    assert row.sandbox.endswith("no capabilities + shared network")
    assert "reach over TCP whatever this worker does" in (fleet.folder / "workers.log").read_text()


@pytest.mark.parametrize(
    ("without", "words", "level"),
    [
        ("landlock", "no Landlock (Linux 5.13", "no landlock + seccomp"),
        ("seccomp", "no seccomp filters", f"landlock abi {landlock.abi()} + no seccomp"),
    ],
)
def test_a_worker_that_cannot_confine_engines_does_not_start_unless_it_is_told_to(
    fleet: Fleet, without: str, words: str, level: str
) -> None:
    old = [sys.executable, "-m", "tests.worker.old_kernel", without]
    refused = subprocess.run(
        [*old, "worker", "device"], env=fleet.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "--allow-weak-sandbox" in refused.stderr
    assert fleet.registered() == []
    program = f"tests.worker.old_kernel {without} tests.worker.subject_worker"
    fleet.start("device", program=program, MODELPRESS_ALLOW_WEAK_SANDBOX="true")
    [row] = fleet.registered()
    assert row.sandbox.startswith(level)
    assert fleet.wait(fleet.submit("finish")).status == "succeeded"
