"""Where a request comes from."""

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """What is remembered of it, so that owners recognise their sessions and what was done to their accounts."""

    address: str | None = None  # an IP address; None behind a unix socket, and of the command line
    user_agent: str | None = None

    @property
    def network(self) -> str:
        """Whose address it is: of IPv6, a subscriber has at least the /64 (RFC 6177), and could use each address of it
        once."""
        if self.address is None:
            return "unknown"
        address = ip_address(self.address)
        if not isinstance(address, IPv6Address):
            return str(address)
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
