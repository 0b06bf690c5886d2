"""Where a request comes from."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

# In this order, since Edge and Opera also name Chrome, and all of these Safari.
_BROWSERS = {
    "Edg": "Edge",
    "EdgA": "Edge",
    "EdgiOS": "Edge",
    "OPR": "Opera",
    "SamsungBrowser": "Samsung Internet",
    "Firefox": "Firefox",
    "FxiOS": "Firefox",
    "CriOS": "Chrome",
    "Chrome": "Chrome",
    "Safari": "Safari",
}

# Who logs in writes it, and the owner reads it in an email: no domain, telephone number or sentence fits.
_SHOWABLE = re.compile(r"[A-Za-z-]{1,20}")


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

    @property
    def browser(self) -> str:
        """The family, whatever its version: an update makes no new place. Of what is no browser, the first product that
        it names (RFC 9110, section 10.1.5), if that is a plain word."""
        products = [product.partition("/")[0] for product in (self.user_agent or "").split()]
        known = next((name for token, name in _BROWSERS.items() if token in products), None)
        if known:
            return known
        return products[0] if products and _SHOWABLE.fullmatch(products[0]) else "unknown"

    def is_same_place(self, other: "RequestOrigin") -> bool:
        return (self.network, self.browser) == (other.network, other.browser)
