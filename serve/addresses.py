"""Which addresses are open to everybody on the Internet, and so to a server that is told by strangers where to go."""

import ipaddress

# The standard library's `is_global` differs between its patch releases and lets these pass in some or all of them.
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # answers to virtual machines of Azure alone, each about itself
            "192.0.0.0/24",  # protocols' own; at 192.0.0.192 Oracle's cloud tells a machine its secrets
            "192.88.99.0/24",  # relays into 6to4
            "2001::/23",  # protocols' own, among them Teredo, which wraps an IPv4 address
            "2002::/16",  # 6to4, which wraps another
            "3fff::/20",  # documentation
        ),
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether the address, as a resolver writes it, is of a machine on the Internet.

    Of IPv6 only what has been handed out for that: not an IPv4 address in another's clothes (::ffff:127.0.0.1). NAT64
    is judged by the address behind it, because networks without IPv4 reach the Internet's other half by it.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)
