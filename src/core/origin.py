"""Where a request comes from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """What is remembered of it, so that owners recognise their sessions and what was done to their accounts."""

    address: str | None = None  # an IP address; None behind a unix socket, and of the command line
    user_agent: str | None = None
