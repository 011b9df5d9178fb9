"""The agent of a host: makes the host's part of an SR domain and of its chains, and undoes it.

The state is the kernel's: maps, filters, routes and rules, all recognisably ours. An agent that is started again finds
it and goes on; `undo` removes it whoever made it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
from ipaddress import IPv6Address

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from msl.errors import NetworkError
from msl.net.sfc import device, layout, path, routes
from msl.net.sfc.device import DEVICE, DEVICE_END
from msl.net.sfc.proxy import Attachment, Proxy, detach_all, egress_of, ingress_of, interface_index, is_attached
from msl.net.sfc.sweep import Sweeper
from msl.plan.addressing import SegmentList
from msl.plan.steering import ChainPlan, DomainPlan, SrHost, Stop

log = logging.getLogger(__name__)

_SMALLEST_MTU = 1280
_LOOPBACK_KIND = 772  # ARPHRD_LOOPBACK
_ETHERNET = 1  # ARPHRD_ETHER


class HostAgent:
    """Makes and undoes what a host needs; to be called in the host's network namespace.

    Args:
        domain: the SR domain.
        host: name of this host in it.
        interfaces: those that lead to the domain.
        mtu: of the way through the domain; by default the smallest of the interfaces'.
    """

    def __init__(self, domain: DomainPlan, host: str, interfaces: tuple[str, ...], mtu: int | None = None) -> None:
        self.domain = domain
        self.host: SrHost = domain.host(host)
        self.interfaces = interfaces
        self.chains: dict[int, ChainPlan] = {}
        self._mtu = mtu
        self._proxy: Proxy | None = None
        self._sweeper: Sweeper | None = None

    @property
    def proxy(self) -> Proxy:
        """The host's proxy.

        Raises:
            NetworkError: `apply` has not been called.
        """
        if self._proxy is None:
            raise NetworkError(f"host {self.host.name}: the SFC proxy is not set up")
        return self._proxy

    @property
    def inner_mtu(self) -> int:
        """Largest packet before its encapsulation."""
        return self._inner_mtu

    def apply(self) -> str:
        """Make the host's part of the domain, or take over what an earlier agent made.

        Returns:
            What was done, in a few words.

        Raises:
            NetworkError: what the kernel refuses; nothing stays then, unless a proxy was running before.
        """
        with IPRoute() as netlink:
            self._inner_mtu = self._reckon_mtu(netlink)
            places = self._places(netlink)
            found = Proxy.find(netlink, places)
            untouched = not is_attached(netlink, places)
            try:
                self._proxy = found or Proxy.load()
                index = device.make(netlink, self._inner_mtu, self.domain.overhead)
                self._set_kernel(netlink, index)
                self._settle(netlink)
                if found is None:
                    self._proxy.inherit(netlink, places)
                for place in self._places(netlink):
                    self._proxy.attach(netlink, place)
            except BaseException as error:
                if untouched:  # else something of another version runs, and goes on
                    with contextlib.suppress(NetlinkError):  # what could not be made needs no undoing
                        self._undo(netlink)
                if isinstance(error, NetlinkError):
                    raise NetworkError(
                        f"host {self.host.name}: the kernel refuses: {os.strerror(error.code)}"
                    ) from error
                raise
        self._sweeper = Sweeper(self._proxy)
        return "took over the proxy that was running" if found else "loaded the proxy"

    def undo(self) -> list[str]:
        """Remove all that an agent ever made on this host; what was removed."""
        with IPRoute() as netlink:
            return self._undo(netlink)

    def add_chain(self, chain: ChainPlan) -> None:
        """Make this host's part of a chain; repeating it changes nothing.

        Raises:
            NetworkError: a SID or the service address belongs to another chain.
        """
        with IPRoute() as netlink, contextlib.ExitStack() as undo:
            undo.callback(self._remove_chain, netlink, chain)
            if (other := self._rival(chain)) is not None:
                undo.pop_all()
                raise NetworkError(f"host {self.host.name}: {other}")
            index = interface_index(netlink, DEVICE)
            for stop in chain.stops:
                if stop.host == self.host.name:
                    self._add_stop(netlink, index, chain, stop)
            if chain.source == self.host.name:
                self._add_service(chain.service, chain.service, layout.Kind.HEAD)
                if chain.service not in {head.service for head in routes.head_ends(netlink)}:
                    self.set_path(chain.service, chain.segments, 0)
            self.chains[chain.number] = chain
            undo.pop_all()

    def _rival(self, chain: ChainPlan) -> str | None:
        """What of a chain another one has already; None if nothing."""
        if self.chains.get(chain.number, chain) != chain:
            return f"chain {chain.number} is that of another job"
        for other in self.chains.values():
            if other.number != chain.number and other.service == chain.service:
                return f"the service address {chain.service} is that of another job (chain {other.number})"
        return None

    def remove_strangers(self) -> int:
        """Remove chains that an earlier agent made and nobody has added again; returns how many places went."""
        known = {address for chain in self.chains.values() for address in _addresses(chain)}
        with IPRoute() as netlink:
            strange = [
                (key.ip, layout.Kind(entry.kind))
                for key, entry in self.proxy.table("services").items()
                if key.ip not in known
            ]
            for address, kind in strange:
                self._remove_service(netlink, address, kind)
        for key, entry in self.proxy.table("sids").items():
            if entry.kind in (layout.Kind.NSF, layout.Kind.SINK) and key.ip not in known:
                self.proxy.table("sids").remove(key)
        return len(strange)

    def remove_chain(self, number: int) -> None:
        """Undo `add_chain`."""
        chain = self.chains.get(number)
        if chain is not None:
            with IPRoute() as netlink:
                self._remove_chain(netlink, chain)

    def steer(self, number: int, segments: SegmentList) -> int:
        """At the source's host: change a chain's path from the next packet on; see `msl.net.sfc.path.change`."""
        return path.change(self, number, segments)

    def sweep(self) -> int:
        """Forget flows that are over; returns how many went."""
        return self._sweeper.sweep() if self._sweeper is not None else 0

    _inner_mtu = 0

    def _reckon_mtu(self, netlink: IPRoute) -> int:
        if not self.interfaces:
            raise NetworkError(f"host {self.host.name}: has no interfaces to the SR domain; name them in the config")
        found = {
            name: netlink.link("get", index=interface_index(netlink, name))[0].get_attr("IFLA_MTU")
            for name in self.interfaces
        }
        smallest = min(found, key=lambda name: found[name])
        if self._mtu is not None and self._mtu > found[smallest]:
            raise NetworkError(
                f"host {self.host.name}: mtu {self._mtu} is more than that of {smallest} ({found[smallest]});"
                f" raise it: ip link set {smallest} mtu {self._mtu}"
            )
        inner = (self._mtu or found[smallest]) - self.domain.overhead
        if inner < _SMALLEST_MTU:
            raise NetworkError(
                f"host {self.host.name}: an MTU of {inner + self.domain.overhead} leaves {inner} bytes beside"
                f" {self.domain.max_segments} segments, and IPv6 needs {_SMALLEST_MTU}; raise the MTU, or lower"
                " sr.max_segments"
            )
        return int(inner)

    def _places(self, netlink: IPRoute) -> list[Attachment]:
        """Which program belongs where: on the fabric, on the services' device, and at the domain's edge."""
        places = [ingress_of(name) for name in self.interfaces]
        places.append(egress_of(DEVICE))
        for link in netlink.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if link["ifi_type"] == _ETHERNET and name not in (*self.interfaces, DEVICE, DEVICE_END):
                places.append(ingress_of(name, "edge"))
        return places

    def _set_kernel(self, netlink: IPRoute, index: int) -> None:
        device.change_settings(netlink, self.host.decap, self.interfaces)
        if not netlink.get_addr(family=socket.AF_INET6, address=str(self.host.address)):
            netlink.addr("add", index=index, address=str(self.host.address), prefixlen=128, flags=0x02)  # no DAD
        routes.add_delivery(netlink)
        routes.add_service_table(netlink, index)

    def _settle(self, netlink: IPRoute) -> None:
        """Write what does not depend on chains."""
        block = self.domain.block
        settings = layout.Settings(
            block=_high(block.network_address),
            block_mask=_high(block.netmask),
            locator=_high(self.host.locator[0]),
            is_virtual=any(_is_veth(netlink, name) for name in self.interfaces),
            device=interface_index(netlink, DEVICE),
        )
        self.proxy.table("settings").put(ctypes.c_uint32(0), settings)
        own = {
            self.host.decap: layout.Kind.HEAD,
            self.host.turn: layout.Kind.TURN,
            self.host.probes: layout.Kind.PROBES,
        }
        for sid, kind in own.items():
            if self.proxy.table("sids").get(layout.Address.of(sid)) is None:
                entry = layout.SidEntry(kind=kind, index=self._free_index())
                self.proxy.table("sids").put(layout.Address.of(sid), entry)

    def _add_stop(self, netlink: IPRoute, device_index: int, chain: ChainPlan, stop: Stop) -> None:
        kind = layout.Kind.SINK if stop is chain.stops[-1] else layout.Kind.NSF
        index = self._add_service(stop.service, chain.service, kind)
        entry = layout.SidEntry(
            service=layout.Address.of(chain.service),
            local=layout.Address.of(stop.service),
            num_stops=len(chain.stops),
            position=chain.stops.index(stop),
            kind=kind,
            index=index,
        )
        for position, sid in enumerate(chain.sids):
            entry.stops[position] = layout.Address.of(sid)
        present = self.proxy.table("sids").get(layout.Address.of(stop.sid))
        if present is not None and bytes(present) != bytes(entry):
            raise NetworkError(f"host {self.host.name}: the SID {stop.sid} belongs to another chain")
        self.proxy.table("sids").put(layout.Address.of(stop.sid), entry)
        routes.steer_answers(netlink, stop.service)
        if kind is layout.Kind.NSF:
            routes.steer_onward(netlink, stop.service, device_index)
        elif not netlink.get_addr(family=socket.AF_INET6, address=str(chain.service)):
            netlink.addr("add", index=device_index, address=str(chain.service), prefixlen=128, flags=0x02)

    def _add_service(self, local: IPv6Address, wire: IPv6Address, kind: layout.Kind) -> int:
        services = self.proxy.table("services")
        present = services.get(layout.Address.of(local))
        if present is not None:
            if (present.wire.ip, present.kind) != (wire, kind):
                raise NetworkError(f"host {self.host.name}: the service address {local} belongs to another chain")
            return int(present.index)
        index = self._free_index()
        services.put(layout.Address.of(local), layout.ServiceEntry(layout.Address.of(wire), index, kind))
        return index

    def _free_index(self) -> int:
        """A number for counters that no SID has; they begin at zero."""
        taken = {value.index for _, value in self.proxy.table("sids").items()}
        taken |= {value.index for _, value in self.proxy.table("services").items()}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        traffic = self.proxy.table("traffic")
        traffic.put(ctypes.c_uint32(index), traffic.zero())
        return index

    def set_path(self, service: IPv6Address, segments: SegmentList, generation: int) -> None:
        """Lead what this host sends to a service along a segment list."""
        with IPRoute() as netlink:
            head = routes.HeadEnd(service, segments, generation)
            routes.set_head_end(netlink, head, interface_index(netlink, DEVICE), self._inner_mtu, self.host.address)
        entry = self.proxy.table("services").get(layout.Address.of(service))
        if entry is not None:
            entry.generation = generation
            self.proxy.table("services").put(layout.Address.of(service), entry)

    def _remove_chain(self, netlink: IPRoute, chain: ChainPlan) -> None:
        for stop in chain.stops:
            if stop.host == self.host.name:
                kind = layout.Kind.SINK if stop is chain.stops[-1] else layout.Kind.NSF
                self._remove_service(netlink, stop.service, kind)
                self.proxy.table("sids").remove(layout.Address.of(stop.sid))
        if chain.source == self.host.name:
            self._remove_service(netlink, chain.service, layout.Kind.HEAD)
        self.chains.pop(chain.number, None)

    def _remove_service(self, netlink: IPRoute, address: IPv6Address, kind: layout.Kind) -> None:
        """Undo what a chain needs at one place: route, rule or address, and its flows."""
        routes.remove_route(netlink, address)
        routes.unsteer_answers(netlink, address)
        if kind is layout.Kind.SINK:
            with contextlib.suppress(NetlinkError, NetworkError):
                index = interface_index(netlink, DEVICE)
                netlink.addr("del", index=index, address=str(address), prefixlen=128)
        self.proxy.table("services").remove(layout.Address.of(address))
        self.proxy.table("returns").remove(layout.Address.of(address))
        for name in ("flows", "embryos"):
            table = self.proxy.table(name)
            for key in table:
                if key.service.ip == address:
                    table.remove(key)

    def _undo(self, netlink: IPRoute) -> list[str]:
        removed = detach_all(netlink)
        removed += device.remove(netlink)
        count = routes.remove_all(netlink)
        if count:
            removed.append(f"{count} routes and rules")
        self.chains.clear()
        self._proxy = self._sweeper = None
        return removed


def _addresses(chain: ChainPlan) -> set[IPv6Address]:
    """SIDs of a chain, and its service address as seen at each place."""
    return {chain.service, *chain.sids, *(stop.service for stop in chain.stops)}


def _is_veth(netlink: IPRoute, name: str) -> bool:
    about = netlink.link("get", index=interface_index(netlink, name))[0].get_attr("IFLA_LINKINFO")
    return about is not None and about.get_attr("IFLA_INFO_KIND") == "veth"


def _high(address: IPv6Address) -> int:
    """The first 64 bits of an address as they stand in memory."""
    return int.from_bytes(address.packed[:8], "little" if _LITTLE else "big")


_LITTLE = socket.htons(1) != 1
