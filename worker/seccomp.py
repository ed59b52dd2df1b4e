"""The system calls an engine may make, on x86-64 Linux: a classic BPF program for seccomp(2).

Most calls pass. Refused is what reaches beyond the process and its folders where Landlock does not look: sockets, other
processes, owners and modes of files, mounts, kernel keys, and whole interfaces that an engine has no use for. Calls
newer than this table do not exist for it. Creating processes and threads is left to the guard, which counts them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

REFUSED = {
    # Sockets. A socket file needs no network and no right that Landlock knows, only to be connected to.
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
    # Other processes: their memory, files, limits, priorities, and signals that are not counted as signals.
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "pidfd_send_signal": 424, "process_madvise": 440, "process_mrelease": 448, "migrate_pages": 256, "move_pages": 279,
    "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setpriority": 141, "ioprio_set": 251,
    "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314,
    # Modes, owners, times and attributes of files, which Landlock leaves to the owner: and the owner may be the worker.
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "truncate": 76, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    # Watching files of others, and opening them by another way than their path.
    "inotify_init": 253, "inotify_init1": 294, "inotify_add_watch": 254, "fanotify_init": 300, "fanotify_mark": 301,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "cachestat": 451, "lookup_dcookie": 212,
    # Memory outside of any limit, and memory shared by name.
    "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "shmat": 30, "shmctl": 31, "shmdt": 67,
    "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71,
    "mq_open": 240, "mq_unlink": 241, "mq_timedsend": 242, "mq_timedreceive": 243, "mq_notify": 244,
    "mq_getsetattr": 245,
    # Interfaces with a history of holes, none of which an engine needs.
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 321, "userfaultfd": 323,
    "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "io_setup": 206, "io_destroy": 207,
    "io_getevents": 208, "io_submit": 209, "io_cancel": 210, "execveat": 322, "personality": 135, "modify_ldt": 154,
    "uselib": 134, "iopl": 172, "ioperm": 173, "vhangup": 153,
    # Namespaces and mounts.
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "statmount": 457, "listmount": 458,
    # The machine.
    "syslog": 103, "acct": 163, "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "quotactl": 179, "quotactl_fd": 443, "nfsservctl": 180, "adjtimex": 159, "clock_adjtime": 305, "settimeofday": 164,
    "clock_settime": 227, "sync": 162, "syncfs": 306, "ustat": 136, "sysfs": 139, "_sysctl": 156,
}  # fmt: skip
"""Answered with EPERM. Numbers from arch/x86/entry/syscalls/syscall_64.tbl."""

TALK = ("socket", "connect", "accept", "bind", "listen", "accept4")
"""Of these, what an engine with a network of its own may do, `socket` for TCP alone."""

ABSENT = {"clone3": 435, "openat2": 437}
"""Answered with ENOSYS: their arguments lie in memory, where a filter cannot look; the C library has another way."""

LAST_KNOWN = 462
"""mseal, Linux 6.10."""

CLONE, FORK, VFORK, KILL, TGKILL, SCHED_SETAFFINITY = 56, 57, 58, 62, 234, 203
_OPEN, _IOCTL, _SOCKETPAIR, _OPENAT, _PRLIMIT64 = 2, 16, 53, 257, 302

CLONE_THREAD = 0x10000
_NEW_NAMESPACES = 0x7E020000
_NETLINK_ROUTE = 0
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal."""

_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_LD, _AND, _JEQ, _JGE, _JSET, _RET = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO, _NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_NUMBER, _ARCH = 0, 4
_SYS_SECCOMP, _SET_MODE_FILTER, _GET_ACTION_AVAILABLE, _NEW_LISTENER = 317, 1, 2, 1 << 3


def is_available() -> bool:
    """Whether this kernel, and what confines this process already, has all that is needed (Linux 5.5)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for action in (_KILL_PROCESS, _NOTIFY):
        wanted = ctypes.c_uint32(action)
        if libc.syscall(_SYS_SECCOMP, _GET_ACTION_AVAILABLE, 0, ctypes.byref(wanted)) != 0:
            return False
    return True


def apply(program: bytes) -> int:
    """Confine this process, and all that comes of it, for good. Returns the descriptor that the guard listens on.

    Needs no_new_privs. Raises OSError, also when something above this process listens already (EBUSY).
    """

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    whole = Filter(len(program) // 8, ctypes.addressof(buffer))
    listener: int = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(whole))
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return listener


def program(*, ask_about_signals: bool, network: bool = False) -> bytes:
    """The filter. With `ask_about_signals` the guard decides who is signalled: for a kernel where Landlock does not.
    With `network` TCP is let through, and the question which interfaces there are: for an engine whose network is its
    own."""
    lines: list[bytes] = []

    def line(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        lines.append(struct.pack("HBBI", operation, if_true, if_false, operand))

    def answer(verdict: int, *numbers: int) -> None:
        for number in numbers:
            line(_JEQ, number, 0, 1)
            line(_RET, verdict)

    refuse, absent = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    line(_LD, _ARCH)
    line(_JEQ, _ARCH_X86_64, 1, 0)
    line(_RET, _KILL_PROCESS)
    line(_LD, _NUMBER)
    line(_JGE, _X32_BIT, 0, 1)
    line(_RET, _KILL_PROCESS)
    line(_JGE, LAST_KNOWN + 1, 0, 1)
    line(_RET, absent)
    open_calls = TALK if network else ()
    answer(refuse, *(number for name, number in REFUSED.items() if name not in open_calls))
    answer(absent, *ABSENT.values())
    answer(_NOTIFY, FORK, VFORK, *((KILL, TGKILL) if ask_about_signals else ()))

    # From here on each block is skipped unless the call is its own, and always ends in a verdict.
    line(_JEQ, CLONE, 0, 4)
    line(_LD, _argument(0))
    line(_JSET, _NEW_NAMESPACES, 0, 1)
    line(_RET, refuse)
    line(_RET, _NOTIFY)
    if network:
        line(_JEQ, REFUSED["socket"], 0, 13)
        line(_LD, _argument(0))
        line(_JEQ, socket.AF_INET, 0, 6)
        line(_LD, _argument(1))
        line(_AND, 0xF)
        line(_JEQ, socket.SOCK_STREAM, 0, 7)
        line(_LD, _argument(2))
        line(_JEQ, 0, 4, 0)
        line(_JEQ, socket.IPPROTO_TCP, 3, 4)  # not MPTCP, SCTP or SMC, which are streams too
        line(_JEQ, socket.AF_NETLINK, 0, 3)
        line(_LD, _argument(2))
        line(_JEQ, _NETLINK_ROUTE, 0, 1)
        line(_RET, _ALLOW)
        line(_RET, refuse)
    line(_JEQ, _SOCKETPAIR, 0, 7)  # of streams only: a datagram can be sent to any socket file
    line(_LD, _argument(0))
    line(_JEQ, socket.AF_UNIX, 0, 4)
    line(_LD, _argument(1))
    line(_AND, 0xF)
    line(_JEQ, socket.SOCK_STREAM, 0, 1)
    line(_RET, _ALLOW)
    line(_RET, refuse)
    for number, others in ((_PRLIMIT64, refuse), (SCHED_SETAFFINITY, _NOTIFY)):  # of oneself, or of one's threads
        line(_JEQ, number, 0, 4)
        line(_LD, _argument(0))
        line(_JEQ, 0, 0, 1)
        line(_RET, _ALLOW)
        line(_RET, others)
    for number, flags in ((_OPEN, 1), (_OPENAT, 2)):  # emptying what may only be read: Landlock before ABI 3 lets it
        line(_JEQ, number, 0, 5)
        line(_LD, _argument(flags))
        line(_AND, os.O_TRUNC | os.O_ACCMODE)
        line(_JEQ, os.O_TRUNC | os.O_RDONLY, 0, 1)
        line(_RET, refuse)
        line(_RET, _ALLOW)
    line(_JEQ, _IOCTL, 0, 5)
    line(_LD, _argument(1))
    line(_JEQ, _TERMINAL_INPUT[0], 1, 0)
    line(_JEQ, _TERMINAL_INPUT[1], 0, 1)
    line(_RET, refuse)
    line(_RET, _ALLOW)
    line(_RET, _ALLOW)
    return b"".join(lines)


def _argument(index: int) -> int:
    """Where the low half of an argument lies in seccomp_data."""
    return 16 + 8 * index
