"""The wall around system calls: no socket, no look into other processes, no change of what a file is.

A filter in the kernel's own small language (classic BPF, ``linux/seccomp.h``) that lets through all calls but those in a table.
What it forbids ends with "operation not permitted", as a missing right does. It holds for the process and for all that it
starts.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

# Calls that nothing in an audit needs, by their numbers on x86-64 and on 64-bit ARM (None: there is no such call).
FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # The network, and sockets of this machine, which the file rules do not cover: a daemon behind one would act for us.
    "socket": (41, 198),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "connect": (42, 203),
    # Calls by another road, which a filter of calls cannot see.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Other processes, and secrets that the kernel keeps.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # What a file is, beside its content: the file rules leave this open everywhere.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    # Other views of the file system, and handles that pass by the walls.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # The kernel itself.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "personality": (135, 92),
}
# Calls whose arguments decide.
CLONE, CLONE3, SOCKETPAIR, IOCTL = (56, 220), (435, 435), (53, 199), (16, 29)
OPEN, OPENAT, OPENAT2, CREAT, TRUNCATE = (2, None), (257, 56), (437, 437), (85, None), (76, 45)
MKNOD, MKNODAT = (133, None), (259, 33)
KILL, TKILL, TGKILL, SIGQUEUE, TGSIGQUEUE = (62, 129), (200, 130), (234, 131), (129, 138), (297, 240)
PIDFD_SIGNAL, PRLIMIT = (424, 424), (302, 261)

NEW_NAMESPACES = 0x7E020080  # all CLONE_NEW… flags
# Typing into the terminal of whoever started the audit; and flags of a file's inode.
TIOCSTI, TIOCLINUX, TIOCSETD, FS_SETFLAGS, FS_SETXATTR = 0x5412, 0x541C, 0x5423, 0x40086602, 0x401C5820
SOCK_DGRAM, SOCK_KIND = 2, 0xF
ACCESS_MODE, TRUNCATES = 0o3, 0o1000
CREATES, SET_ID = 0o20000100, 0o6000  # O_CREAT and the bit of O_TMPFILE, the same on both processors; set-user-ID, set-group-ID

_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # calls of x86-64's third kind, which have numbers of their own
_LOAD, _EQUAL, _AT_LEAST, _BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _FILTER = 21, 22, 2

Op = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(frozen=True)
class Also:
    """What the filter has to see to because nothing else does.

    Attributes
    ----------
    truncation
        The kernel's file rules do not cover emptying a file.
    signals
        They do not cover signals to other processes, and those are in sight.
    limits
        Other processes are in sight, so that their limits could be set.
    """

    truncation: bool = False
    signals: bool = False
    limits: bool = False


def lacking() -> str:
    """Say why there is no filter here; empty where there is."""
    if platform.machine() not in _ARCHES or struct.calcsize("P") != 8:
        return f"a filter of system calls for this processor ({platform.machine()})"
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "filters of system calls (seccomp, CONFIG_SECCOMP_FILTER)"
    return ""


def restrict(also: Also, own_pid: int) -> None:
    """Raise the wall around this thread and all that it starts; new privileges must have been given up before.

    Raises
    ------
    OSError
        The kernel refuses the filter.
    """
    program = _program(also, own_pid, *_ARCHES[platform.machine()])
    packed = b"".join(struct.pack("=HBBI", *op) for op in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    held = _Program(len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(held), 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the filter of system calls was refused: {errno.errorcode.get(code, code)}")


def _program(also: Also, own_pid: int, column: int, arch: int) -> list[Op]:
    ops: list[Op] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if column == 0:
        ops += [(_AT_LEAST, 0, 1, _X32), _refuse()]
    forbidden = dict(FORBIDDEN)
    if also.truncation:
        forbidden["truncate"] = TRUNCATE
    for numbers in forbidden.values():
        number = numbers[column]
        if number is not None:
            ops += [(_EQUAL, 0, 1, number), _refuse()]

    def judge(numbers: tuple[int | None, int | None], *body: Op) -> None:
        """Add what decides a call by its arguments; a body that falls through lets the call pass."""
        number = numbers[column]
        if number is not None:
            ops.extend([(_EQUAL, 0, len(body) + 1, number), *body, (_RETURN, 0, 0, _ALLOW)])

    judge(CLONE, _argument(0), (_BITS, 0, 1, NEW_NAMESPACES), _refuse())
    judge(CLONE3, _refuse(errno.ENOSYS))  # its flags stand in memory; the C library then takes clone
    kind = [_argument(1), (_AND, 0, 0, SOCK_KIND), (_EQUAL, 0, 1, SOCK_DGRAM), _refuse()]
    judge(SOCKETPAIR, *kind)  # a pair of datagram sockets can be sent on to any other
    asked = (TIOCSTI, TIOCLINUX, TIOCSETD, FS_SETFLAGS, FS_SETXATTR)
    judge(IOCTL, _argument(1), *(op for number in asked for op in ((_EQUAL, 0, 1, number), _refuse())))
    for numbers, position in ((OPEN, 1), (OPENAT, 2)):
        judge(numbers, *_creating(position), *(_emptying(position) if also.truncation else ()))
    judge(OPENAT2, _refuse(errno.ENOSYS))  # its flags stand in memory, too
    for numbers, position in ((CREAT, 1), (MKNOD, 1), (MKNODAT, 2)):
        judge(numbers, _argument(position), (_BITS, 0, 1, SET_ID), _refuse())
    if also.signals:
        for numbers in (KILL, TGKILL, SIGQUEUE, TGSIGQUEUE):
            judge(numbers, _argument(0), (_EQUAL, 1, 0, own_pid), _refuse())
        judge(TKILL, _refuse())
        judge(PIDFD_SIGNAL, _refuse())
    if also.limits:
        judge(PRLIMIT, _argument(0), (_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, own_pid), _refuse())
    return [*ops, (_RETURN, 0, 0, _ALLOW)]


def _creating(position: int) -> tuple[Op, ...]:
    """Refuse to make a file that runs with the rights of its owner; the mode follows the flags at `position`."""
    return (_argument(position), (_BITS, 0, 3, CREATES), _argument(position + 1), (_BITS, 0, 1, SET_ID), _refuse())


def _emptying(position: int) -> tuple[Op, ...]:
    """Refuse to empty a file opened for reading; opened for writing, it is covered by the file rules."""
    flags = _argument(position)
    return (flags, (_BITS, 0, 4, TRUNCATES), flags, (_AND, 0, 0, ACCESS_MODE), (_EQUAL, 0, 1, 0), _refuse())


def _argument(position: int) -> Op:
    """Load the low half of an argument; both kinds of processor store it first."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * position)


def _refuse(code: int = errno.EPERM) -> Op:
    return (_RETURN, 0, 0, _ERRNO | code)
