"""Passwords that were found in data breaches, as the range search of Have I Been Pwned tells.

Five of the forty hex digits of a password's SHA-1 leave this process, and hundreds of passwords share them. The check
fails open: that somebody else's service is down must keep nobody from choosing a password.

Import this only where the check is enabled: it loads an HTTP client, which takes time and memory.
"""

import asyncio
import hashlib
import logging
import re

import httpx

from src.core.passwords import normalize_password

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs the URL, and so a part of the hash

TIMEOUT_SECONDS = 1
LOOKUPS_AT_ONCE = 8  # or a flood of sign-ups would be one of requests to somebody else's service

_ENTRY = re.compile(r"([0-9A-F]{35}):(\d+)", re.ASCII)


class BreachedPasswords:
    """Answers for one process, from the service at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tls = httpx.create_ssl_context()  # made once: it reads hundreds of certificates
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def contains(self, password: str) -> bool:
        """Whether the password was found in a breach. `False` when nobody says so within a second."""
        digest = hashlib.sha1(normalize_password(password).encode(), usedforsecurity=False).hexdigest().upper()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._lookups:
                counts = _read_counts(await self._fetch(prefix=digest[:5]))
        except (httpx.HTTPError, OSError, ValueError) as error:
            # Not its text, which may hold the URL, and so a part of the hash.
            log.warning("A new password is not checked for breaches: %s", type(error).__name__)
            return False
        return counts.get(digest[5:], 0) > 0

    async def _fetch(self, *, prefix: str) -> str:
        # Padding hides from whoever watches the traffic how long the answer is, and so which range was asked for.
        async with httpx.AsyncClient(verify=self._tls, headers={"Add-Padding": "true"}) as client:
            response = await client.get(self._url + prefix)
        return response.raise_for_status().text


def _read_counts(answer: str) -> dict[str, int]:
    """How often each password of the range was found; never, if it is padding. Raises `ValueError` for anything else,
    such as the page of a network that asks for a log-in."""
    matches = [_ENTRY.fullmatch(line) for line in answer.splitlines()]
    if not matches:
        raise ValueError("an empty range")
    counts = dict[str, int]()
    for match in matches:
        if match is None:
            raise ValueError("no range")
        counts[match[1]] = int(match[2])
    return counts
