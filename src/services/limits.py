"""Rate limits: who asks or guesses too often is refused for a while, before any password is hashed.

docs/decisions/0008 tells why the database counts, and behind which methods another store could.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NoReturn
from uuid import UUID

from src.core.exceptions import AppException, TooManyRequestsException
from src.core.kinds import EmailKind
from src.core.limits import BlockedKeys, Place, Rate
from src.core.metrics import Metrics
from src.core.origin import RequestOrigin
from src.core.settings import Settings
from src.db.base import utc_now
from src.db.models import EventKind
from src.db.unit_of_work import UnitOfWork

ORIGIN_KNOWN_FOR = timedelta(days=14)  # since a session was used there, or a mailed link


class RateLimiter:
    """Places are taken in a transaction of their own, before the work that they allow: of many guesses at once, no more
    come through than of as many in a row. Where none is left, each method raises `TooManyRequestsException`.
    """

    def __init__(
        self,
        uow: UnitOfWork,
        settings: Settings,
        *,
        origin: RequestOrigin,
        fingerprint: Callable[[str], str],
        blocked: BlockedKeys,
        metrics: Metrics,
    ) -> None:
        self._uow = uow
        self._settings = settings
        self._origin = origin.network
        self._fingerprint = fingerprint
        self._blocked = blocked
        self._metrics = metrics

    async def take_request(self) -> None:
        """For a request of somebody who is not known."""
        await self._take(self._request)

    async def take_email(self, kind: EventKind, to: str, *, is_anonymous: bool = True) -> Sequence[Place]:
        """For an email to an address or user, whether or not there is one; each kind is counted on its own. The places
        are for `given_back_on`, if it is not queued."""
        settings = self._settings
        places = [
            self._place(settings.rate_limit_emails_per_address_and_origin, kind, to, self._origin),
            self._place(settings.rate_limit_emails_per_address, kind, to),
        ]
        await self._take(*([self._request] if is_anonymous else []), *places)
        return places

    async def may_notify(self, kind: EmailKind, to: str) -> bool:
        """Whether one more notice of this kind may go to the address: whoever causes too many is not refused for it."""
        return not await self._attempt(self._place(self._settings.rate_limit_emails_per_address, "notice", kind, to))

    async def take_guess(self, email: str, *, is_anonymous: bool = True) -> Sequence[Place]:
        """For a guess at the password of an address, whether or not it has an account. The places are for `give_back`,
        if the guess is right.

        When all origins together guess too often, the owner still gets in from where they had a session, or followed a
        link, lately: otherwise anybody could lock them out. And who is logged in already does not wait for what
        strangers guess.
        """
        here, anywhere = self.guess_places(email, is_anonymous=is_anonymous)
        request = [self._request] if is_anonymous else []
        self._refuse_blocked(here, *request)
        places = [here, anywhere, *request]
        refused = await self._attempt(*places)
        if refused == [anywhere] and await self._is_known_to(email):
            return [here]
        if refused:
            await self._refuse(refused, of=places, blocks={anywhere: here})
        return [here, anywhere]

    def guess_places(self, email: str, *, is_anonymous: bool = True) -> Sequence[Place]:
        """Those that `take_guess` takes here, for a later request that gives them back."""
        whose = "password" if is_anonymous else "current password"
        anywhere = self._place(self._settings.rate_limit_failures_per_account, whose, email)
        return [self._guesses_here(email), anywhere]

    async def forgive(self, email: str) -> None:
        """For who has followed a link that was sent to the address, in its transaction: from here they may guess anew,
        whatever others guess."""
        if not self._settings.rate_limit_enabled:
            return
        here = self._guesses_here(email)
        await self._uow.limits.forget(here.key)
        self._blocked.remove([here.key])
        await self._uow.limits.mark(self._key("proof", email, self._origin), ORIGIN_KNOWN_FOR)

    async def take_client_guess(self, client_id: str) -> None:
        """For a wrong guess at the secret of a client. It is random, so that many who guess together do not matter."""
        here = self._place(self._settings.rate_limit_failures_per_account_and_origin, "secret", client_id, self._origin)
        await self._take(here, self._request)

    async def take_code(self, user_id: UUID, *, in_session: bool) -> Sequence[Place]:
        """For a guess at a code of somebody's second factor. It counts from wherever it comes: six digits bear few
        guesses. At a log-in only who has proved the password may guess; those guesses, and those in a session, are
        counted apart: who has stolen one of the two must not use up what the owner needs with the other."""
        whose = "session code" if in_session else "code"
        anywhere = self._place(self._settings.rate_limit_codes_per_account, whose, str(user_id))
        await self._take(anywhere)
        return [anywhere]

    async def give_back(self, places: Sequence[Place]) -> None:
        """After what succeeded, in its transaction."""
        if places and self._settings.rate_limit_enabled:
            await self._uow.limits.give_back(places)
            self._blocked.remove(place.key for place in places)  # who was refused meanwhile has a place again

    @asynccontextmanager
    async def given_back_on(self, refusal: type[AppException], places: Sequence[Place]) -> AsyncGenerator[None, None]:
        """For what may be refused before it has done what the places are for. What it has begun is rolled back."""
        try:
            yield
        except refusal:
            await self._uow.rollback()
            await self.give_back(places)
            raise

    async def _take(self, *places: Place) -> None:
        self._refuse_blocked(*places)
        if refused := await self._attempt(*places):
            await self._refuse(refused, of=places)

    def _refuse_blocked(self, *places: Place) -> None:
        """From memory: whoever goes on after a refusal costs no statement."""
        for place in places:
            if wait := self._blocked.seconds_left(place.key):
                self._metrics.count_limit(place.limit)
                raise TooManyRequestsException.after(wait, place.rate)

    async def _attempt(self, *places: Place) -> Sequence[Place]:
        """Take the places that are free; those that are not."""
        if not self._settings.rate_limit_enabled:
            return []
        taken = await self._uow.limits.take(places)
        return [place for place in places if place.key not in taken]

    async def _refuse(
        self, refused: Sequence[Place], *, of: Sequence[Place], blocks: Mapping[Place, Place] | None = None
    ) -> NoReturn:
        """The place that is awaited longest is refused from memory from now on; `blocks` names another in its place."""
        await self.give_back([place for place in of if place not in refused])
        waits = await self._uow.limits.find_waits(refused)
        longest = max(refused, key=lambda place: waits.get(place.key, 0.0))
        wait = waits.get(longest.key, 0.0)  # the purge may just have forgotten it
        self._blocked.add((blocks or {}).get(longest, longest).key, wait)
        self._metrics.count_limit(longest.limit)
        is_first = await self._uow.limits.report(longest.key)
        raise TooManyRequestsException.after(wait, longest.rate, is_first=is_first)

    async def _is_known_to(self, email: str) -> bool:
        """Whether the owner of the address had a session, or followed a link, here lately."""
        if await self._uow.limits.is_marked(self._key("proof", email, self._origin)):
            return True
        addresses = await self._uow.sessions.list_recent_addresses(email, since=utc_now() - ORIGIN_KNOWN_FOR)
        return any(RequestOrigin(address).network == self._origin for address in addresses)

    def _guesses_here(self, email: str) -> Place:
        return self._place(self._settings.rate_limit_failures_per_account_and_origin, "password", email, self._origin)

    @property
    def _request(self) -> Place:
        return self._place(self._settings.rate_limit_requests_per_origin, "request", self._origin)

    def _place(self, rate: Rate, *whose: str) -> Place:
        # With the rate: what was counted by another says nothing by this one.
        return Place(self._key(f"{rate.count}/{rate.period}", *whose), rate, limit=whose[0])

    def _key(self, *parts: str) -> UUID:
        return UUID(self._fingerprint(" ".join(parts))[:32])
