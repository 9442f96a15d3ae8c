"""Which addresses a picture, list or archive may come from: the public Internet, and what FIRSTSIGHT_PRIVATE_SOURCES opens.

A URL's text decides nothing, since one address has many spellings and a name may resolve to another address each time. What is
judged is the address that a socket is about to connect to, and the peer that it is connected to.
"""

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import InputError

PRIVATE_VARIABLE = "FIRSTSIGHT_PRIVATE_SOURCES"
"""Comma-separated CIDR blocks from which fetching is allowed although they are not on the public Internet; empty: none."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The part of IPv6 routed on the Internet; site-local, multicast and IPv4-compatible addresses are outside it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_CREDENTIALS = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, Google, OpenStack and others
        "169.254.170.2", "169.254.170.23",  # AWS: tasks of ECS, pods of EKS
        "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",  # AWS, EKS, Google
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure's host, a public address by its number
    )
)  # fmt: skip
"""Addresses at which clouds hand credentials to any caller inside: no setting allows them."""


class PrivateAddressError(Exception):
    """The URL's host is at an address from which fetching is not allowed; nothing was sent."""


@dataclass(frozen=True)
class Reachable:
    """The addresses that may be fetched from.

    Attributes:
        networks: allowed networks in addition to the public Internet.
    """

    networks: tuple[_Network, ...] = ()

    @classmethod
    def from_environment(cls) -> "Reachable":
        """Read FIRSTSIGHT_PRIVATE_SOURCES; InputError if it is not a list of CIDR blocks."""
        return cls.parse(os.environ.get(PRIVATE_VARIABLE, "").split(","), PRIVATE_VARIABLE)

    @classmethod
    def parse(cls, blocks: Sequence[str], name: str) -> "Reachable":
        """From CIDR blocks; InputError names the setting and the malformed block."""
        networks = []
        for block in filter(None, map(str.strip, blocks)):
            try:
                networks.append(ipaddress.ip_network(block))
            except ValueError as error:
                raise InputError(f"{name} must be CIDR blocks such as 10.0.0.0/8,fd00::/8, got {block!r}: {error}") from error
        return cls(tuple(networks))

    def allows(self, address: str) -> bool:
        """Whether an address, as a socket names it, may be fetched from."""
        return self._allows(ipaddress.ip_address(address.partition("%")[0]))

    def _allows(self, address: _Address) -> bool:
        inner = _inner(address)
        if address in _CREDENTIALS or inner in _CREDENTIALS:
            return False
        if any(address in network for network in self.networks):
            return True
        if inner is not None:
            return self._allows(inner)
        if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
            return False
        return address.is_global and not address.is_multicast


def _inner(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address embedded in an IPv6 one (mapped, compatible, NAT64, 6to4 or Teredo); else None."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):  # :: and ::1 are addresses of their own
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def permitted(host: str, port: int, reachable: Reachable) -> list[str]:
    """The addresses of a host that may be fetched from, in the resolver's order.

    Raises:
        PrivateAddressError: none of its addresses is allowed.
        OSError: it has no address.
    """
    found = dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    allowed = [address for address in found if reachable.allows(address)]
    if found and not allowed:
        raise PrivateAddressError(_refusal(next(iter(found))))
    return allowed


def check_peer(connection: socket.socket, reachable: Reachable) -> None:
    """Close a connection whose other end may not be fetched from, and raise PrivateAddressError."""
    peer = str(connection.getpeername()[0])
    if not reachable.allows(peer):
        connection.close()
        raise PrivateAddressError(_refusal(peer))


def _refusal(address: str) -> str:
    """Why an address is refused, and what opens it."""
    bare = ipaddress.ip_address(address.partition("%")[0])
    if bare in _CREDENTIALS or _inner(bare) in _CREDENTIALS:
        return f"it is at {address}, where a cloud serves credentials: nothing is fetched from there"
    return f"it is at {address}, not on the public Internet: {PRIVATE_VARIABLE} (jobs.private_sources of a profile) must name its range"
