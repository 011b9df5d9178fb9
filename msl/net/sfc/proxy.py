"""The SFC proxy in the kernel of one host: loaded, attached, found again, and its maps."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from msl.errors import NetworkError
from msl.net import compiler
from msl.net.sfc import layout
from msl.net.sfc.maps import Map, id_of, maps_of, per_cpu, program_by_id, sizes_of

log = logging.getLogger(__name__)

_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_PRIORITY = 0x6D73
_OWNER = "msl-"
"""How the names of our filters begin; behind it stand the program's name, the source's digest, and the program's
number, by which another process finds program and maps."""
_TABLES: Mapping[str, tuple[type[Any], type[Any]]] = {
    "settings": (ctypes.c_uint32, layout.Settings),
    "sids": (layout.Address, layout.SidEntry),
    "services": (layout.Address, layout.ServiceEntry),
    "flows": (layout.FlowKey, layout.FlowEntry),
    "embryos": (layout.FlowKey, layout.FlowEntry),
    "paths": (ctypes.c_uint64, layout.PathEntry),
    "returns": (layout.Address, layout.Back),
    "drops": (ctypes.c_uint32, per_cpu(ctypes.c_uint64)),
    "traffic": (ctypes.c_uint32, per_cpu(layout.Traffic)),
}

_INHERITED = ("paths", "sids", "returns", "services", "flows", "embryos")


def source_folder() -> Path:
    """Where the C files are: beside the package in a checkout, in `share/msl/bpf` of an installation.

    Raises:
        NetworkError: nowhere.
    """
    checkout = Path(__file__).resolve().parents[3] / "bpf"
    for folder in (checkout, Path(sys.prefix) / "share" / "msl" / "bpf"):
        if (folder / "proxy.c").exists():
            return folder
    raise NetworkError(f"the proxy's C files are missing: no {checkout / 'proxy.c'}; reinstall msl")


def digest(folder: Path) -> str:
    """Tells one version of the proxy's source from another."""
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]")))
    return hashlib.sha256(text).hexdigest()[:8]


@dataclass(frozen=True)
class Attachment:
    """A program at a hook of an interface."""

    program: str
    interface: str
    parent: int

    @property
    def filter_name(self) -> str:
        """How the filter's name begins."""
        return f"{_OWNER}{self.program}-"


class Proxy:
    """The proxy's maps and programs.

    It lives in the kernel as long as it is attached, whatever becomes of the process that loaded it.
    """

    def __init__(self, programs: Mapping[str, int], maps: Mapping[str, int], version: str) -> None:
        self.version = version
        self._programs = programs
        self._tables: dict[str, Map[Any, Any]] = {}
        for name, (key, value) in _TABLES.items():
            self._tables[name] = Map(maps[name], key, value)

    @classmethod
    def load(cls, folder: Path | None = None) -> Proxy:
        """Compile the proxy and load it; nothing is attached yet.

        Raises:
            NetworkError: the compiler is missing, or it or the kernel refuses the program.
        """
        folder = folder or source_folder()
        module = compiler.compile_source(folder / "proxy.c", {})
        programs = {name: compiler.load_program(module, name) for name in ("ingress", "egress", "edge")}
        maps = {name: module[name.encode()].map_fd for name in _TABLES}
        proxy = cls(programs, maps, digest(folder))
        proxy._module = module  # its descriptors are closed with it
        return proxy

    _module: Any = None

    @classmethod
    def find(cls, netlink: IPRoute, attachments: Sequence[Attachment]) -> Proxy | None:
        """The proxy that is attached already, of this version of the source; None if there is none."""
        version = digest(source_folder())
        programs: dict[str, int] = {}
        for place in attachments:
            found = _attached(netlink, place)
            if found is not None and found.startswith(place.filter_name + version):
                programs.setdefault(place.program, program_by_id(int(found.rpartition("-")[2])))
        if not {"ingress", "egress"} <= set(programs):
            return None
        maps: dict[str, int] = {}
        for program in programs.values():
            maps |= maps_of(program)
        if not set(_TABLES) <= set(maps):
            return None
        return cls(programs, maps, version)

    def inherit(self, netlink: IPRoute, attachments: Sequence[Attachment]) -> None:
        """Take chains, flows and paths over from a proxy of another version that is attached.

        What the two versions declare differently is left out; flows are then learnt again from their packets.
        """
        programs = [found for place in attachments if (found := _attached(netlink, place)) is not None]
        for number in {int(name.rpartition("-")[2]) for name in programs}:
            program = program_by_id(number)
            before = maps_of(program)
            for name in _INHERITED:
                key, value = _TABLES[name]
                if name in before and sizes_of(before[name]) == sizes_of(self._tables[name].fd):
                    for entry in Map(before[name], key, value).items():
                        self._tables[name].put(*entry)
            for fd in (program, *before.values()):
                os.close(fd)

    def attach(self, netlink: IPRoute, place: Attachment) -> None:
        """Attach a program; one of an earlier version is replaced without a gap.

        Raises:
            NetworkError: there is no such interface, or the kernel refuses.
        """
        index = interface_index(netlink, place.interface)
        try:
            netlink.tc("add", "clsact", index=index)
        except NetlinkError as error:
            if error.code != 17:  # EEXIST
                raise NetworkError(f"cannot attach to {place.interface}: {error}") from error
        options = {
            "fd": self._programs[place.program],
            "name": f"{place.filter_name}{self.version}-{id_of(self._programs[place.program])}",
            "parent": place.parent,
            "prio": _PRIORITY,
            "handle": 1,
            "protocol": 0x0003,  # ETH_P_ALL
            "direct_action": True,
        }
        netlink.tc("replace-filter", "bpf", index=index, **options)

    def table(self, name: str) -> Map[Any, Any]:
        """One of the maps."""
        return self._tables[name]

    def drops(self) -> dict[str, int]:
        """Packets dropped so far, by reason."""
        counts = {}
        for number, reason in enumerate(layout.REASONS):
            values = self._tables["drops"].get(ctypes.c_uint32(number))
            counts[reason] = sum(values) if values is not None else 0
        return counts

    def traffic(self, index: int) -> layout.Traffic:
        """What went through a SID so far."""
        total = layout.Traffic()
        for values in self._tables["traffic"].get(ctypes.c_uint32(index)) or ():
            for way in layout.Way:
                total.packets[way] += values.packets[way]
                total.bytes[way] += values.bytes[way]
        return total

    def program(self, name: str) -> int:
        """Descriptor of a program."""
        return self._programs[name]


def check_sizes(maps: Mapping[str, int]) -> None:
    """Compare the sizes of keys and values with those that the C files declare.

    Raises:
        NetworkError: they differ.
    """
    for name, (key, value) in _TABLES.items():
        element = value._type_ if name in ("drops", "traffic") else value
        wanted = ctypes.sizeof(key), ctypes.sizeof(element)
        if sizes_of(maps[name]) != wanted:
            raise NetworkError(f"map {name}: the C files have sizes {sizes_of(maps[name])}, msl.net {wanted}")


def interface_index(netlink: IPRoute, name: str) -> int:
    """Index of an interface.

    Raises:
        NetworkError: there is none of that name.
    """
    found = netlink.link_lookup(ifname=name)
    if not found:
        names = ", ".join(sorted(link.get_attr("IFLA_IFNAME") for link in netlink.get_links()))
        raise NetworkError(f"no interface {name!r} on this host; there are {names}")
    index: int = found[0]
    return index


def ingress_of(interface: str, program: str = "ingress") -> Attachment:
    """A program at an interface's ingress."""
    return Attachment(program, interface, _INGRESS)


def egress_of(interface: str) -> Attachment:
    """`egress` at an interface's egress."""
    return Attachment("egress", interface, _EGRESS)


def is_attached(netlink: IPRoute, attachments: Sequence[Attachment]) -> bool:
    """Whether a proxy of any version is attached at one of these places."""
    return any(_attached(netlink, place) is not None for place in attachments)


def detach_all(netlink: IPRoute) -> list[str]:
    """Remove our filters from all interfaces, whoever attached them; their names."""
    removed = []
    for link in netlink.get_links():
        index = link["index"]
        for parent in (_INGRESS, _EGRESS):
            for name, priority in _filters(netlink, index, parent):
                if name.startswith(_OWNER) and priority == _PRIORITY:
                    netlink.tc("del-filter", "bpf", index=index, parent=parent, prio=_PRIORITY, handle=1, protocol=3)
                    removed.append(f"{name} on {link.get_attr('IFLA_IFNAME')}")
        if removed and not any(True for parent in (_INGRESS, _EGRESS) for _ in _filters(netlink, index, parent)):
            with contextlib.suppress(NetlinkError):  # it had none
                netlink.tc("del", "clsact", index=index)
    return removed


def _attached(netlink: IPRoute, place: Attachment) -> str | None:
    """Name of our filter at a place."""
    indices = netlink.link_lookup(ifname=place.interface)
    if not indices:
        return None
    for name, priority in _filters(netlink, indices[0], place.parent):
        if name.startswith(place.filter_name) and priority == _PRIORITY:
            return name
    return None


def _filters(netlink: IPRoute, index: int, parent: int) -> Iterator[tuple[str, int]]:
    """Name and priority of the BPF filters at a hook."""
    try:
        dumped = list(netlink.get_filters(index=index, parent=parent))
    except NetlinkError:
        return  # no clsact there
    for entry in dumped:
        options = entry.get_attr("TCA_OPTIONS") if entry.get_attr("TCA_KIND") == "bpf" else None
        name = options.get_attr("TCA_BPF_NAME") if options is not None else None
        if name is not None:
            yield name, entry["info"] >> 16
