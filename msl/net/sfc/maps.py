"""Maps and programs of the kernel's BPF, through libbpf; found again by what is attached, without a file system."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from msl.errors import NetworkError

K = TypeVar("K", bound="ctypes._CData")
V = TypeVar("V", bound="ctypes._CData")

_NAMES = ("libbpf.so.1", "libbpf.so.0")
ANY, NOEXIST, EXIST = 0, 1, 2


@functools.cache
def _libbpf() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise NetworkError("libbpf is missing; install it: apt-get install -y libbpf1")


def _call(name: str, *arguments: Any) -> int:
    """Call a function of libbpf; returns its result, or minus the error number."""
    result = int(getattr(_libbpf(), name)(*arguments))
    if result == -1 and ctypes.get_errno():  # before libbpf 1.0
        return -ctypes.get_errno()
    return result


def _checked(what: str, result: int) -> int:
    if result < 0:
        raise NetworkError(f"{what}: {os.strerror(-result)}")
    return result


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for a key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace("-", ",").split(",")[-1]
    return int(last) + 1


class Map(Generic[K, V]):
    """A map with fixed types.

    Args:
        fd: its descriptor; owned from here on.
        key: type of the keys.
        value: type of the values; of one CPU's value, if the map is per CPU.
    """

    def __init__(self, fd: int, key: type[K], value: type[V]) -> None:
        self.fd = fd
        self._key = key
        self._value = value

    def get(self, key: K) -> V | None:
        """The value of a key, if there is one."""
        value = self._value()
        result = _call("bpf_map_lookup_elem", self.fd, ctypes.byref(key), ctypes.byref(value))
        if result == -errno.ENOENT:
            return None
        _checked("cannot read a BPF map", result)
        return value

    def put(self, key: K, value: V, flags: int = ANY) -> bool:
        """Set the value of a key; False if `flags` forbid it."""
        result = _call("bpf_map_update_elem", self.fd, ctypes.byref(key), ctypes.byref(value), ctypes.c_uint64(flags))
        if result in (-errno.EEXIST, -errno.ENOENT) and flags:
            return False
        _checked("cannot write a BPF map", result)
        return True

    def remove(self, key: K) -> bool:
        """Delete a key; False if it was not there."""
        result = _call("bpf_map_delete_elem", self.fd, ctypes.byref(key))
        if result == -errno.ENOENT:
            return False
        _checked("cannot delete from a BPF map", result)
        return True

    def keys(self) -> list[K]:
        """All keys. Keys that come and go meanwhile may be missed or stand twice."""
        found: list[K] = []
        previous: Any = None
        while len(found) < 1_000_000:
            following = self._key()
            before = None if previous is None else ctypes.byref(previous)
            if _call("bpf_map_get_next_key", self.fd, before, ctypes.byref(following)) < 0:
                break
            found.append(following)
            previous = following
        return found

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys())

    def items(self) -> Iterator[tuple[K, V]]:
        """All keys with their values."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def zero(self) -> V:
        """A value of zeros."""
        return self._value()

    def close(self) -> None:
        """Give the descriptor back; the map lives on while a program uses it."""
        os.close(self.fd)


def per_cpu(value: type[V]) -> type[Any]:
    """Type of the values of all CPUs, as a lookup in a per-CPU map returns them."""
    assert ctypes.sizeof(value) % 8 == 0  # the kernel rounds up to that
    element: Any = value
    array: type[Any] = element * possible_cpus()
    return array


class _ProgramDescription(ctypes.Structure):
    """The beginning of the kernel's `struct bpf_prog_info`."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class _MapDescription(ctypes.Structure):
    """The beginning of the kernel's `struct bpf_map_info`."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


def _describe(fd: int, description: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(description))
    result = _call("bpf_obj_get_info_by_fd", fd, ctypes.byref(description), ctypes.byref(size))
    _checked("cannot describe a BPF object", result)


def program_by_id(number: int) -> int:
    """Descriptor of a loaded program."""
    return _checked(f"no BPF program {number}", _call("bpf_prog_get_fd_by_id", number))


def id_of(program: int) -> int:
    """The kernel's number of a program."""
    description = _ProgramDescription()
    _describe(program, description)
    return int(description.id)


def maps_of(program: int) -> dict[str, int]:
    """Descriptors of the maps that a program uses, by name; they are the caller's to close."""
    description = _ProgramDescription()
    _describe(program, description)
    numbers = (ctypes.c_uint32 * description.nr_map_ids)()
    description = _ProgramDescription(nr_map_ids=len(numbers), map_ids=ctypes.addressof(numbers))
    _describe(program, description)
    found = {}
    for number in numbers:
        fd = _checked(f"no BPF map {number}", _call("bpf_map_get_fd_by_id", number))
        about = _MapDescription()
        _describe(fd, about)
        found[about.name.decode()] = fd
    return found


def sizes_of(fd: int) -> tuple[int, int]:
    """Sizes of a map's keys and values in bytes."""
    about = _MapDescription()
    _describe(fd, about)
    return about.key_size, about.value_size


class _RunOptions(ctypes.Structure):
    """libbpf's `struct bpf_test_run_opts`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def run_program(program: int, packet: bytes, repeat: int = 1) -> tuple[int, bytes, int]:
    """Run a tc program on a packet, in this process's network namespace (BPF_PROG_TEST_RUN).

    Args:
        program: its descriptor.
        packet: from the Ethernet header on.
        repeat: how often.

    Returns:
        The verdict, the packet as the program left it, and the mean nanoseconds of a run.
    """
    before = ctypes.create_string_buffer(packet, len(packet))
    after = ctypes.create_string_buffer(len(packet) + 1024)
    options = _RunOptions(
        size=ctypes.sizeof(_RunOptions),
        data_in=ctypes.addressof(before),
        data_out=ctypes.addressof(after),
        data_size_in=len(packet),
        data_size_out=len(after),
        repeat=repeat,
    )
    _checked("cannot run a BPF program", _call("bpf_prog_test_run_opts", program, ctypes.byref(options)))
    verdict = ctypes.c_int32(options.retval).value
    return verdict, after.raw[: options.data_size_out], options.duration
