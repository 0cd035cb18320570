"""
A filter of system calls, for what no namespace holds.

That is the user's keyrings, sockets to the host of a virtual machine, and the parts of the kernel that are attacked most
and that commands need least.

The filter is a program of classic BPF, as seccomp(2) has it: it compares numbers, and ends in "allow" or in an error
for the caller. It is handed to bubblewrap, which loads it before the command is started.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import TYPE_CHECKING

from .._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of system calls, from the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_X86_64 = {"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323}
_GENERIC = {"add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282}
_EVERYWHERE = (425, 426, 427)  # io_uring: its operations pass by every filter

# By machine: its number in linux/audit.h, the calls that are refused, `ioctl`, `socket`.
_MACHINES = {
    "x86_64": (0xC000003E, tuple(_X86_64.values()), 16, 41),
    "aarch64": (0xC00000B7, tuple(_GENERIC.values()), 29, 198),
    "riscv64": (0xC00000F3, tuple(_GENERIC.values()), 29, 198),
}

_FAMILIES = (1, 2, 10, 16)  # of sockets: unix, IPv4, IPv6, netlink; vsock, Bluetooth and the like know no namespace
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX put words into the mouth of who sits at the terminal

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; low halves, as all are little-endian
_ALLOW = 0x7FFF0000
_X32 = 0x40000000  # calls of the x32 ABI have this bit, and would pass by every comparison


def filter_program(machine: str | None = None) -> bytes:
    """
    Return the filter for a machine (this one).

    Raises:
        InvalidOption: The numbers of its system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise InvalidOption(f"a sandbox needs one of the machines {', '.join(_MACHINES)}; this one is {machine}")
    return b"".join(struct.pack("<HBBI", *step) for step in _steps(*_MACHINES[machine]))


def _steps(arch: int, refused: tuple[int, ...], ioctl: int, socket: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield instructions: code, how many to skip if true, if false, and an operand."""
    refuse = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    yield from ((_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), refuse)  # a program for another machine does not run at all
    yield from ((_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), refuse)
    for number in (*refused, *_EVERYWHERE):
        yield from ((_EQUAL, 0, 1, number), refuse)
    yield from ((_EQUAL, 0, 2 + 2 * len(_TERMINAL), ioctl), (_LOAD, 0, 0, _SECOND))
    for request in _TERMINAL:
        yield from ((_EQUAL, 0, 1, request), refuse)
    yield allow
    yield from ((_EQUAL, 0, 2 + len(_FAMILIES), socket), (_LOAD, 0, 0, _FIRST))
    for left, family in zip(range(len(_FAMILIES), 0, -1), _FAMILIES, strict=True):
        yield (_EQUAL, left, 0, family)
    yield from (refuse, allow)
