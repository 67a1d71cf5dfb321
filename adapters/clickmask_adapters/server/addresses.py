"""Addresses of clients, as the server tells them apart."""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
IPV6_PREFIX = 64  # bits; one client usually has a whole network of this size


def parse_address(text: str) -> Address | None:
    """The IP address in `text`, or None for a name. IPv4 that is written as IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def client_network(text: str) -> str:
    """The network that stands for one client: an IPv4 address, or the /64 network of an IPv6 address."""
    address = parse_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address or text)
