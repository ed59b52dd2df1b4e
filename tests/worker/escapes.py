"""An engine that tries to get out: `python escapes.py REQUEST.json`. Also run outside, to see that each way is one.

Every function of `WAYS` raises OSError (or is killed) where the way is closed. What they aim at comes with the request.
The standard library alone: nothing but this file is lent to it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000


def call(number: int, *arguments: Any) -> int:
    result: int = LIBC.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Escapes:
    """`aims`: paths of another tenant's blob, of the database and of the broker's socket; a port of the machine that
    answers; the worker's process id."""

    def __init__(self, aims: dict[str, str], folder: Path) -> None:
        self.blob, self.database, self.socket = aims["blob"], aims["database"], aims["socket"]
        self.worker, self.outside, self.folder = int(aims["worker"]), aims["outside"], folder
        self.request, self.port = aims["request"], int(aims["port"])

    # Sockets.

    def internet_socket(self) -> None:
        socket.socket(socket.AF_INET).close()

    def internet_socket_of_version_six(self) -> None:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()

    def multipath_tcp_socket(self) -> None:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()

    def sctp_socket(self) -> None:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()

    def netlink_socket(self) -> None:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()

    def connect_to_the_broker(self) -> None:
        with socket.socket(socket.AF_UNIX) as talk:
            talk.connect(self.socket)

    def datagram_pair(self) -> None:
        """Could send to any socket file."""
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
            end.close()

    def connect_to_a_port_of_the_machine(self) -> None:
        socket.create_connection(("127.0.0.1", self.port), 5).close()

    def connect_a_pair_to_the_broker(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.close()
        with ours:
            ours.connect(self.socket)

    def send_a_datagram(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
            talk.sendto(b"x", ("127.0.0.1", self.port))

    def raise_an_interface(self) -> None:
        """Which takes a capability over the network."""
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asks:
            fcntl.ioctl(asks, 0x8914, fcntl.ioctl(asks, 0x8913, b"lo".ljust(40, b"\0")))

    # Files of others.

    def read_a_blob(self) -> None:
        Path(self.blob).read_bytes()

    def list_the_blobs(self) -> None:
        os.listdir(Path(self.blob).parent)

    def read_the_database(self) -> None:
        Path(self.database).read_bytes()

    def write_to_the_database(self) -> None:
        os.close(os.open(self.database, os.O_WRONLY | os.O_APPEND))

    def empty_a_file(self) -> None:
        os.close(os.open(self.outside, os.O_RDONLY | os.O_TRUNC))

    def cut_a_file_short(self) -> None:
        os.truncate(self.outside, 1)

    def close_a_blob_to_all(self) -> None:
        os.chmod(self.outside, 0o400)

    def give_a_file_away(self) -> None:
        os.chown(self.outside, os.getuid(), os.getgid())

    def change_the_time_of_a_blob(self) -> None:
        os.utime(self.blob)

    def mark_a_file(self) -> None:
        os.setxattr(self.outside, "user.mark", b"x")

    def watch_the_blobs(self) -> None:
        watch = call(294, 0)
        call(254, watch, os.fsencode(Path(self.blob).parent), 0x100)
        os.close(watch)

    def link_to_a_blob(self) -> None:
        os.link(self.blob, self.folder / "blob")
        os.unlink(self.folder / "blob")

    def read_a_blob_through_a_symbolic_link(self) -> None:
        link = self.folder / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(self.blob)
        link.read_bytes()

    def read_a_blob_through_the_root_of_proc(self) -> None:
        Path("/proc/self/root", self.blob.lstrip("/")).read_bytes()

    def write_through_a_linked_folder(self) -> None:
        link = self.folder / "linked"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(self.outside).parent)
        (link / "written").write_text("x")

    def write_beside_the_job(self) -> None:
        Path(self.outside).with_name("written").write_text("x")

    def write_to_tmp(self) -> None:
        path = Path(f"/tmp/escape-{os.getpid()}")
        path.write_text("x")
        path.unlink()

    def write_to_the_shared_memory(self) -> None:
        path = Path(f"/dev/shm/escape-{os.getpid()}")
        path.write_text("x")
        path.unlink()

    def change_the_request(self) -> None:
        os.close(os.open(self.request, os.O_WRONLY))

    def change_the_source(self) -> None:
        os.close(os.open(__file__, os.O_WRONLY))

    def read_the_shadow_file(self) -> None:
        Path("/etc/shadow").read_bytes()

    def read_the_accounts(self) -> None:
        Path("/etc/passwd").read_bytes()

    def list_the_home_of_root(self) -> None:
        os.listdir("/root")

    def list_the_machine(self) -> None:
        os.listdir("/")

    def open_by_handle(self) -> None:
        handle = ctypes.create_string_buffer(ctypes.c_uint32(128).value.to_bytes(4, "little"), 8 + 128)
        mount = ctypes.c_int()
        call(303, -100, os.fsencode(self.blob), handle, ctypes.byref(mount), 0)

    def make_a_device(self) -> None:
        os.mknod(self.folder / "device", 0o600 | 0o020000, os.makedev(1, 3))
        os.unlink(self.folder / "device")

    # Other processes.

    def list_processes(self) -> None:
        os.listdir("/proc")

    def read_the_environment_of_the_parent(self) -> None:
        Path(f"/proc/{os.getppid()}/environ").read_bytes()

    def read_the_environment_of_the_worker(self) -> None:
        Path(f"/proc/{self.worker}/environ").read_bytes()

    def read_the_command_of_the_worker(self) -> None:
        Path(f"/proc/{self.worker}/cmdline").read_bytes()

    def open_the_memory_of_the_worker(self) -> None:
        os.close(os.open(f"/proc/{self.worker}/mem", os.O_RDWR))

    def signal_the_parent(self) -> None:
        os.kill(os.getppid(), 0)

    def signal_the_worker(self) -> None:
        os.kill(self.worker, 0)

    def signal_by_another_way(self) -> None:
        call(424, call(434, self.worker, 0), 0, None, 0)

    def limit_the_worker(self) -> None:
        resource.prlimit(self.worker, resource.RLIMIT_CORE, (0, 0))

    def pin_the_worker(self) -> None:
        os.sched_setaffinity(self.worker, os.sched_getaffinity(self.worker))

    def slow_the_worker(self) -> None:
        os.setpriority(os.PRIO_PROCESS, self.worker, 0)

    def trace_the_worker(self) -> None:
        call(101, 0x4206, self.worker, None, None)

    def read_the_memory_of_the_worker(self) -> None:
        into = ctypes.create_string_buffer(8)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(into), 8)
        start = Path(f"/proc/{self.worker}/maps").read_text().split("-")[0]
        theirs = (ctypes.c_size_t * 2)(int(start, 16), 8)
        call(310, self.worker, ours, 1, theirs, 1, ctypes.c_long(0))

    def take_a_file_of_the_worker(self) -> None:
        os.close(call(438, call(434, self.worker, 0), 0, 0))

    # Programs.

    def run_a_shell(self) -> None:
        subprocess.run(["/bin/sh", "-c", "true"], check=True)

    def run_a_shell_through_the_loader(self) -> None:
        done = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "/bin/sh", "-c", "true"], check=False)
        if done.returncode != 0:
            raise PermissionError(errno.EACCES, "the loader could not open it")

    def run_what_was_written(self) -> None:
        program = self.folder / "program"
        program.write_bytes(Path(sys.executable).read_bytes())
        os.close(os.open(program, os.O_RDONLY))
        if not os.access(program, os.X_OK):
            copy = os.open(self.folder / "runnable", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
            os.write(copy, b"#!" + os.fsencode(sys.executable) + b"\n")
            os.close(copy)
            program = self.folder / "runnable"
        subprocess.run([program], check=True, stdin=subprocess.DEVNULL)

    def run_from_memory(self) -> None:
        os.close(os.memfd_create("program"))

    # The kernel.

    def new_user_namespace(self) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0 if LIBC.unshare(CLONE_NEWUSER) == 0 else ctypes.get_errno())
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise OSError(code, os.strerror(code))

    def clone_into_a_new_user_namespace(self) -> None:
        child = call(56, CLONE_NEWUSER | signal.SIGCHLD, None, None, None, None)
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    def mount(self) -> None:
        target = self.folder / "mounted"
        target.mkdir(exist_ok=True)
        call(165, b"none", os.fsencode(target), b"tmpfs", 0, None)
        call(166, os.fsencode(target), 0)

    def change_root(self) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0 if LIBC.chroot(os.fsencode(self.folder)) == 0 else ctypes.get_errno())
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise OSError(code, os.strerror(code))

    def io_uring(self) -> None:
        os.close(call(425, 1, ctypes.create_string_buffer(120)))

    def bpf(self) -> None:
        attributes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
        os.close(call(321, 0, attributes, 128))

    def userfaultfd(self) -> None:
        os.close(call(323, 0o2000000))

    def perf_event(self) -> None:
        event = (ctypes.c_uint32 * 32)(1, 128)
        os.close(call(298, event, 0, -1, -1, 0))

    def keys_of_the_kernel(self) -> None:
        call(250, 0, -3, 1)

    def shared_memory_of_system_five(self) -> None:
        call(31, call(29, 0, 4096, 0o1600), 0, None)

    def message_queue(self) -> None:
        os.close(call(240, b"escape", os.O_CREAT | os.O_RDWR, 0o600, None))
        call(241, b"escape")

    def type_into_the_terminal(self) -> None:
        import fcntl

        _, slave = os.openpty()
        fcntl.ioctl(slave, 0x5412, array.array("b", [0]))

    def become_root(self) -> None:
        try:
            os.setresuid(0, 0, 0)
        except OSError as error:  # a user namespace that root is not in calls it invalid
            raise PermissionError(errno.EPERM, "no root") from error
        status = Path("/proc/self/status").read_text()
        (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        if int(effective, 16) == 0:
            raise PermissionError(errno.EPERM, "root without any capability")

    # Bombs, which say how far they got.

    def fork_bomb(self) -> int:
        """Processes that live at once, all of them forking; each says so."""
        hears, says = os.pipe()
        began = os.getpid()
        for _ in range(8):
            with contextlib.suppress(OSError):
                if os.fork() == 0:
                    os.write(says, b"x")
        if os.getpid() != began:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.5)
        os.write(says, b"x")
        return len(os.read(hears, 4096)) - 1

    def thread_bomb(self) -> int:
        """Threads that live at once."""
        end = threading.Event()
        threads = 0
        try:
            while threads < 3000:
                threading.Thread(target=end.wait, daemon=True).start()
                threads += 1
        except RuntimeError:
            pass
        end.set()
        return threads

    def ask_for_a_tebibyte(self) -> None:
        try:
            mmap.mmap(-1, 1 << 40)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "MemoryError") from error

    def memory_bomb(self) -> None:
        held = []
        while True:
            held.append(b"x" * (16 << 20))
            time.sleep(0.01)

    def memory_bomb_of_many(self) -> None:
        for _ in range(3):
            if os.fork() == 0:
                held = b"x" * (150 << 20)
                time.sleep(60 if held else 0)
        time.sleep(60)

    def disk_bomb(self) -> None:
        for number in range(100_000):
            (self.folder / f"{number}").write_bytes(b"x" * (4 << 20))
            time.sleep(0.01)

    def disk_bomb_of_one_file(self) -> None:
        with (self.folder / "large").open("wb") as file:
            for _ in range(1000):
                file.write(b"x" * (4 << 20))

    def call_of_another_architecture(self) -> None:
        """getpid by the gate of i386: mov eax, 20; int 0x80; ret."""
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    def call_of_x32(self) -> None:
        call(0x40000000 + 39)


BOMBS = {
    *("fork_bomb", "thread_bomb", "ask_for_a_tebibyte", "memory_bomb", "memory_bomb_of_many"),
    *("disk_bomb", "disk_bomb_of_one_file", "call_of_another_architecture", "call_of_x32"),
}
WAYS = [name for name in vars(Escapes) if not name.startswith("_") and name not in BOMBS]


def attempt(way: Callable[[], object]) -> str | int:
    """`escaped`, or the name of the error, or how far a bomb got."""
    try:
        found = way()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return found if isinstance(found, int) else "escaped"


def what_works(folder: Path) -> dict[str, object]:
    """What an engine needs, tried."""
    ends = socket.socketpair()
    ends[0].sendall(b"x")
    (folder / "written").write_text("x")
    (folder / "below").mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        os.replace(folder / "written", folder / "below" / "moved")
    os.kill(os.getpid(), 0)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    os.sched_setaffinity(thread.native_id or 0, os.sched_getaffinity(0))
    end.set()
    thread.join()
    return {
        "socketpair": ends[1].recv(1) == b"x",
        "moved": (folder / "below" / "moved").exists(),
        "own status": Path("/proc/self/status").read_text().startswith("Name:"),
        "random": len(os.urandom(8)) == 8,
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_bytes())
    metadata = request["spec"]["metadata"]
    folder = Path(request["folder"])
    escapes = Escapes(metadata | {"request": sys.argv[1]}, folder)
    found: dict[str, object] = {}
    for name in WAYS if metadata["do"] == "all" else [metadata["do"]]:
        found[name] = attempt(getattr(escapes, name))
    if metadata["do"] == "all":
        found["works"] = what_works(folder)
    print(json.dumps(found), file=sys.stderr, flush=True)
    print(json.dumps({"type": "failed", "error": {"code": "internal", "message": "it is over", "hint": "x"}}))
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
