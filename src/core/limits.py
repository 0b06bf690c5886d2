"""Rates: how often something may happen before it is refused for a while."""

import re
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

BLOCKED_KEYS = 10_000  # remembered by each process

_FORM = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}


@dataclass(frozen=True, slots=True)
class Rate:
    """`10/15m` allows ten at once, and then one more each time that a tenth of the 15 minutes has passed."""

    count: int
    period: int  # seconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError` for what is not a number and a period, as in `10/15m`, `100/1h` or `5/30s`."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError("must be a number and a period in s, m, h or d, such as 10/15m")
        return cls(int(match[1]), int(match[2]) * _SECONDS[match[3]])

    @property
    def interval(self) -> float:
        """Seconds after which a place is free again."""
        return self.period / self.count


@dataclass(frozen=True, slots=True)
class Place:
    """One of the places that a rate allows. The key tells whose they are; it is a keyed hash, so that no table and no
    memory holds an address for it. `limit` says what is limited."""

    key: UUID
    rate: Rate
    limit: str = ""


class BlockedKeys:
    """Keys that have no place left, and until when: whoever goes on asking costs no statement. The one that was blocked
    first makes room for the next."""

    def __init__(self, size: int = BLOCKED_KEYS) -> None:
        self._size = size
        self._until = OrderedDict[UUID, float]()

    def add(self, key: UUID, seconds: float) -> None:
        self._until[key] = time.monotonic() + seconds
        self._until.move_to_end(key)
        if len(self._until) > self._size:
            self._until.popitem(last=False)

    def remove(self, keys: Iterable[UUID]) -> None:
        for key in keys:
            self._until.pop(key, None)

    def seconds_left(self, key: UUID) -> float:
        """0 for a key that is not blocked (any more)."""
        until = self._until.get(key)
        if until is None:
            return 0.0
        left = until - time.monotonic()
        if left <= 0:
            del self._until[key]
        return max(0.0, left)
