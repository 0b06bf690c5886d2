"""The bounded pool of threads that hashes passwords, and the queue for it, in which nobody can crowd out others.

Others call `HashPool.run`; whose turn is next, and who has to leave a full queue, is known only here.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import NamedTuple, NoReturn, TypeVar

from src.core.exceptions import ServiceUnavailableException
from src.core.metrics import Metrics

# Of the hashing threads: behind the event loop, yet not so far that a flood of reads on one core stops them.
NICENESS = 5

Result = TypeVar("Result")


class HashKind(StrEnum):
    """What a password is hashed for. Each kind has places of its own in the queue: when they are taken, only this kind
    is refused."""

    LOG_IN = "log-in"
    SIGN_UP = "sign-up"
    ACCOUNT_CHANGE = "account-change"  # what needs a session or a mailed link


class _Line(NamedTuple):
    """Those who wait for the same, from the same origin."""

    kind: HashKind
    origin: str


_Turn = asyncio.Future[bool]  # True: it is yours. False: you have lost your place.


class HashPool:
    """At most `threads` hashes at once, and `queue_size` of each kind waiting; more are refused at once, not delayed.

    Turns go round the origins (fair queuing, RFC 970), so whoever asks once waits for one job of each that asks without
    pause, not for all of them. bcrypt releases the interpreter lock, so the event loop keeps answering reads while the
    threads are busy.
    """

    def __init__(self, *, threads: int, queue_size: int, metrics: Metrics | None = None) -> None:
        self._queue_size = queue_size
        self._metrics = metrics or Metrics()
        self._lines = OrderedDict[_Line, deque[_Turn]]()  # in the order of their turns; none is empty
        self._idle = threads  # while somebody waits, none is
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="password-hash", initializer=_yield_to_the_event_loop
        )

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def require_room(self, kind: HashKind, origin: str) -> None:
        """Raises `ServiceUnavailableException` if `run` would refuse at once.

        A full queue has room for an origin that waits with fewer jobs than another, of which the last has to leave.
        """
        if self._is_full(kind) and len(self._lines.get(_Line(kind, origin), ())) + 1 >= len(self._longest(kind)):
            self._refuse(kind)

    async def run(
        self,
        work: Callable[[], Result],
        *,
        kind: HashKind,
        origin: str,
        is_disconnected: Callable[[], Awaitable[bool]],
    ) -> Result:
        """Do the work in turn. Raises `ServiceUnavailableException` if there is no room to wait or the place is lost to
        another origin, or if the caller has gone by the time its turn comes: then the work would be for nobody."""
        began_at = time.monotonic()
        await self._wait_for_turn(_Line(kind, origin))
        self._metrics.observe_hash_wait(kind, time.monotonic() - began_at)
        try:
            if await is_disconnected():
                raise ServiceUnavailableException
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._pass_turn_on()

    async def _wait_for_turn(self, line: _Line) -> None:
        if self._idle:
            self._idle -= 1
            return
        turn = self._queue_up(line)
        try:
            has_turn = await asyncio.shield(turn)  # or cancelling the caller would cancel the turn, while it is in line
        except asyncio.CancelledError:
            self._give_up(line, turn)
            raise
        if not has_turn:
            self._refuse(line.kind)

    def _queue_up(self, line: _Line) -> _Turn:
        self.require_room(line.kind, line.origin)
        if self._is_full(line.kind):
            self._longest(line.kind).pop().set_result(False)
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(line, deque()).append(turn)
        return turn

    def _give_up(self, line: _Line, turn: _Turn) -> None:
        if not turn.done():
            self._lines[line].remove(turn)
            if not self._lines[line]:
                del self._lines[line]
        elif turn.result():
            self._pass_turn_on()

    def _refuse(self, kind: HashKind) -> NoReturn:
        self._metrics.count_hash_refusal(kind)
        raise ServiceUnavailableException

    def _pass_turn_on(self) -> None:
        if not self._lines:
            self._idle += 1
            return
        line, turns = self._lines.popitem(last=False)
        turns.popleft().set_result(True)
        if turns:
            self._lines[line] = turns  # behind all others

    def _is_full(self, kind: HashKind) -> bool:
        return sum(len(turns) for line, turns in self._lines.items() if line.kind is kind) >= self._queue_size

    def _longest(self, kind: HashKind) -> deque[_Turn]:
        return max((turns for line, turns in self._lines.items() if line.kind is kind), key=len)


def _yield_to_the_event_loop() -> None:
    # bcrypt lets go of the interpreter lock, but not of the processor: without this, a read that arrives while every
    # core hashes waits for a time slice. Linux has priorities per thread; elsewhere the number could be a process's.
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and a failing initializer would end the pool
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


async def never_disconnected() -> bool:
    return False
