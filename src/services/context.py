"""What every use case works with, put together once for requests, the command line and tests."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from uuid import UUID

from src.core.addresses import LOCAL_ADDRESS, is_local
from src.core.callers import Caller
from src.core.encryption import Encryption
from src.core.exceptions import ValidationException
from src.core.hash_pool import HashPool
from src.core.kinds import EmailKind
from src.core.limits import BlockedKeys
from src.core.metrics import Metrics
from src.core.origin import RequestOrigin
from src.core.passwords import PasswordHasher, check_password
from src.core.settings import Settings
from src.core.tokens import TokenSigner
from src.db.models import EventKind
from src.db.unit_of_work import UnitOfWork
from src.email import EmailUtils, SendsEmail
from src.services.audit import AnonymousFailures, Audit, AuditEvent
from src.services.limits import RateLimiter
from src.services.outbox import Outbox

if TYPE_CHECKING:
    from src.services.breached_passwords import BreachedPasswords


ANSWER_STEP_SECONDS = 0.02  # far above what differs between addresses that are known and unknown


def no_dispatcher() -> None:
    """Without a dispatcher in this process, emails are found by the polling of another."""


@dataclass(slots=True)
class Runtime:
    """What a process makes of its settings once."""

    settings: Settings
    hash_pool: HashPool
    signer: TokenSigner
    encryption: Encryption
    email: SendsEmail | None  # None where SMTP is not configured
    wake_dispatcher: Callable[[], None] = no_dispatcher
    blocked: BlockedKeys = field(default_factory=BlockedKeys)
    answer_step_seconds: float = ANSWER_STEP_SECONDS
    anonymous_failures: AnonymousFailures = field(default_factory=Counter)
    breached_passwords: "BreachedPasswords | None" = None  # None unless AUTH_HIBP_ENABLED
    metrics: Metrics = field(default_factory=Metrics)

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics | None = None) -> Self:
        signer, metrics = TokenSigner.from_settings(settings), metrics or Metrics()
        return cls(
            settings,
            HashPool(threads=settings.auth_hash_threads, queue_size=settings.auth_hash_queue_size, metrics=metrics),
            signer,
            Encryption(signer.keys),
            EmailUtils.from_settings(settings),
            breached_passwords=_load_breached_passwords(settings),
            metrics=metrics,
        )


def _load_breached_passwords(settings: Settings) -> "BreachedPasswords | None":
    if not settings.auth_hibp_enabled:
        return None
    from src.services.breached_passwords import BreachedPasswords  # it loads an HTTP client

    return BreachedPasswords(settings.auth_hibp_url)


@dataclass(frozen=True, slots=True)
class Context:
    """One unit of work, and all that goes with it. Services take it alone."""

    uow: UnitOfWork
    settings: Settings
    passwords: PasswordHasher
    breached_passwords: "BreachedPasswords | None"
    signer: TokenSigner
    encryption: Encryption
    origin: RequestOrigin
    limits: RateLimiter
    audit: Audit
    outbox: Outbox

    @classmethod
    def new(
        cls,
        runtime: Runtime,
        uow: UnitOfWork,
        *,
        email: SendsEmail | None,
        origin: RequestOrigin | None = None,
    ) -> Self:
        """`email` is what carries emails; without it, links are in the responses."""
        settings, origin = runtime.settings, origin or RequestOrigin()
        return cls(
            uow,
            settings,
            PasswordHasher(runtime.hash_pool, settings.auth_bcrypt_rounds, origin.network, uow.is_disconnected),
            runtime.breached_passwords,
            runtime.signer,
            runtime.encryption,
            origin,
            RateLimiter(
                uow,
                settings,
                origin=origin,
                fingerprint=runtime.signer.fingerprint,
                blocked=runtime.blocked,
                metrics=runtime.metrics,
            ),
            Audit(
                uow,
                origin=origin.address,
                fingerprint=runtime.signer.fingerprint,
                anonymous_failures=runtime.anonymous_failures,
                metrics=runtime.metrics,
            ),
            Outbox(uow, is_wired=email is not None, wake=runtime.wake_dispatcher),
        )

    @property
    def link_in_response(self) -> bool:
        """Whether whoever signs up or invites gets the link in the response, rather than by email."""
        return not self.outbox.is_wired or self.settings.auth_return_token_in_response

    def recording(
        self, kind: EventKind, *, by: Caller | None = None, user_id: UUID | None = None
    ) -> AbstractAsyncContextManager[AuditEvent]:
        """See `Audit.recording`."""
        return self.audit.recording(kind, by=by, user_id=user_id)

    async def commit(self, event: AuditEvent | None = None, *, failure: str | None = None) -> None:
        """Record the event and commit, both or neither; then the emails that were queued are on their way."""
        if event:
            await self.audit.add(event, failure=failure)
        await self.uow.commit()
        self.outbox.wake()

    async def notify(
        self, kind: EmailKind, *, to: str, user_id: UUID | None, is_for_nobody: bool = False, **content: str | None
    ) -> None:
        """Queue an email that says where the request came from; see `Outbox.queue`."""
        where = self.origin.address
        await self.outbox.queue(kind, to=to, user_id=user_id, where=where, is_for_nobody=is_for_nobody, **content)


class Service:
    """The use cases of an area. One public method is one use case is one transaction, whose commit is the last step
    before success. Public methods do not call each other."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.uow = context.uow
        self.settings = context.settings

    def _check_address(self, email: str, *, field: str = "email") -> None:
        """What may become somebody's address: where production could send no email, nobody can prove it.

        Raises `ValidationException` for `field`.
        """
        if self.settings.is_production and is_local(email):
            raise ValidationException.for_field(field, LOCAL_ADDRESS)

    async def _check_password(self, password: str, *, email: str, field: str = "password") -> None:
        """What may become a password. It may ask another service, so no transaction may be open.

        Raises `ValidationException` for `field`.
        """
        check_password(password, email=email, min_length=self.settings.auth_password_min_length, field=field)
        if self.context.breached_passwords and await self.context.breached_passwords.contains(password):
            raise ValidationException.for_field(field, "has been found in a data breach: choose another")
