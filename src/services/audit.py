"""The audit trail: everything that matters to security leaves an event, whether it succeeds or is refused.

The event of a success is stored in its transaction. A refusal rolls back everything but its own event. A refusal that
names nobody is only counted: anybody can cause as many of them as they like.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from src.core.callers import AuthenticatedClient, AuthenticatedUser, Caller, Operator
from src.core.exceptions import AppException, TooManyRequestsException
from src.core.metrics import Metrics
from src.db.models import EventKind, EventOutcome
from src.db.unit_of_work import UnitOfWork

COMMAND_LINE = "command line"

# How often failures named nobody, by what was tried and the code of the refusal. Both are ours, so there are few keys.
AnonymousFailures = Counter[tuple[EventKind, str]]


@dataclass(slots=True)
class AuditEvent:
    """What somebody tries to do. A use case fills in what it learns meanwhile."""

    kind: EventKind
    origin: str | None  # where they are
    user_id: UUID | None = None  # on whom
    actor_id: UUID | None = None  # who, once they have proved it
    client_id: UUID | None = None  # which service does it, or has it done to it
    address: str | None = None  # typed at a log-in, and nobody's; only a keyed hash of it is stored
    changes: str | None = None

    @property
    def origin_owner(self) -> UUID | None:
        """The user with whom the origin is forgotten: who acts, or else on whom. Of a service or the command line, it
        is nobody's."""
        is_nobodys = self.client_id is not None or self.origin == COMMAND_LINE
        return None if is_nobodys else self.actor_id or self.user_id

    @property
    def names_nobody(self) -> bool:
        """Whether it tells neither who nor on whom. The command line is somebody: who runs it holds the database."""
        names = (self.user_id, self.actor_id, self.client_id, self.address)
        return not any(names) and self.origin != COMMAND_LINE

    def set_actor(self, user_id: UUID) -> None:
        """Whoever acts has proved to be this user, and acts on themselves."""
        self.user_id = self.actor_id = user_id


def is_recorded(refusal: AppException) -> bool:
    """Not that the service is busy; of attempts that come too fast, the first of a period."""
    return refusal.is_first if isinstance(refusal, TooManyRequestsException) else refusal.status_code < 500


class Audit:
    """`origin` is the address that the caller has; `fingerprint` makes the keyed hash of an email address.

    A failure that names nobody leaves no event, and is counted in `anonymous_failures`.
    """

    def __init__(
        self,
        uow: UnitOfWork,
        *,
        origin: str | None,
        fingerprint: Callable[[str], str],
        anonymous_failures: AnonymousFailures,
        metrics: Metrics,
    ) -> None:
        self._uow = uow
        self._origin = origin
        self._fingerprint = fingerprint
        self.anonymous_failures = anonymous_failures
        self._metrics = metrics

    @asynccontextmanager
    async def recording(
        self, kind: EventKind, *, by: Caller | None = None, user_id: UUID | None = None
    ) -> AsyncGenerator[AuditEvent, None]:
        """An event whose refusal is recorded: the transaction is rolled back, the event of the failure committed, and
        the exception goes on. That the service is busy is no refusal. Its success is for the use case to commit.
        """
        event = self.new_event(kind, by=by, user_id=user_id)
        try:
            yield event
        except AppException as refusal:
            if is_recorded(refusal):
                await self._uow.rollback()
                await self._commit_refusal(event, refusal.code)
            raise

    def new_event(self, kind: EventKind, *, by: Caller | None = None, user_id: UUID | None = None) -> AuditEvent:
        """An event, for use cases that record its refusal themselves because they have more to keep of it."""
        event = AuditEvent(kind, self._origin, user_id)
        match by:
            case AuthenticatedUser():
                event.actor_id = by.user_id
            case AuthenticatedClient():
                event.client_id = by.client_id
            case Operator():
                event.origin = COMMAND_LINE
        return event

    async def add(self, event: AuditEvent, *, failure: str | None = None) -> None:
        """Add the event to the transaction: of a success, or of a failure with the code that the caller gets.

        Of a failure that is only counted, the same statement inserts nothing: an answer that hides whether an address
        is known must not come sooner.
        """
        is_stored = True
        if failure and event.names_nobody:
            is_stored = False
            self.anonymous_failures[event.kind, failure] += 1
        self._metrics.count_event(event.kind, failure, is_stored=is_stored)
        await self._uow.events.record(
            event.kind,
            EventOutcome.FAILURE if failure else EventOutcome.SUCCESS,
            is_stored=is_stored,
            reason=failure,
            user_id=event.user_id,
            actor_id=event.actor_id,
            client_id=event.client_id,
            address_hash=self._fingerprint(event.address) if event.address else None,
            changes=event.changes,
            origin=event.origin,
            origin_owner=event.origin_owner,
        )

    async def _commit_refusal(self, event: AuditEvent, code: str) -> None:
        if event.names_nobody:  # garbage must not cost a transaction
            self.anonymous_failures[event.kind, code] += 1
            self._metrics.count_event(event.kind, code, is_stored=False)
            return
        await self._uow.begin()
        await self.add(event, failure=code)
        await self._uow.commit()
