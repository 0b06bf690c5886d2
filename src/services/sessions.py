"""Sessions: how people log in, stay logged in, and log out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Principal
from src.core.exceptions import InvalidCredentialsError, InvalidRefreshTokenError, SessionNotFoundError
from src.core.passwords import PasswordHasher, needs_rehash
from src.core.settings import Settings
from src.core.tokens import RefreshClaims, TokenSigner
from src.db.base import utc_now
from src.db.database import begin_writing
from src.db.models import EventKind, SessionModel
from src.db.repositories import SessionRepository, UserRepository
from src.email import MessageKind
from src.services.audit import Audit
from src.services.outbox import Outbox

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenPair:
    user_id: UUID
    access_token: str
    expires_in: timedelta
    refresh_token: str
    refresh_expires_in: timedelta


@dataclass(frozen=True, slots=True)
class Client:
    """What is remembered of where a session came from, so that its owner recognises it."""

    address: str | None
    user_agent: str | None


class SessionService:
    def __init__(
        self,
        session: AsyncSession,
        *,
        settings: Settings,
        passwords: PasswordHasher,
        signer: TokenSigner,
        outbox: Outbox | None,
        audit: Audit,
    ) -> None:
        self._session = session
        self._users = UserRepository(session)
        self._sessions = SessionRepository(session)
        self._settings = settings
        self._passwords = passwords
        self._signer = signer
        self._outbox = outbox
        self._audit = audit
        self._idle = timedelta(seconds=settings.auth_session_idle_seconds)

    async def log_in(self, *, email: str, password: str, client: Client) -> TokenPair:
        """Start a session. The oldest of too many ends, and a hash of lower cost or foreign kind is upgraded.

        Raises `InvalidCredentialsError` after the same work for a wrong password and an unknown, pending or disabled
        account, and `ServiceUnavailableException` when too many wait to be hashed.
        """
        async with self._audit.act(EventKind.LOG_IN) as act:
            owner = await self._users.find_owner(email)
            await self._session.close()
            act.user_id, act.address = (owner.id, None) if owner else (None, email)
            is_right = await self._passwords.verify(password, owner.hashed_password if owner else None)
            if owner is None or not owner.is_active or not is_right:
                raise InvalidCredentialsError
            new_hash = owner.hashed_password
            if needs_rehash(owner.hashed_password, self._settings.auth_bcrypt_rounds):
                new_hash = await self._passwords.hash(password)
            await begin_writing(self._session)
            if not await self._users.claim_log_in(owner.id, seen_hash=owner.hashed_password, new_hash=new_hash):
                raise InvalidCredentialsError
            session = await self._start(owner.id, client)
            act.set_actor(owner.id)
            await self._audit.succeeded(act)
            await self._session.commit()
        return self._pair(owner.id, session.id, session.generation, self._end(session))

    async def refresh(self, refresh_token: str, client: Client) -> TokenPair:
        """Exchange a refresh token for the next one.

        Two tabs, or a retry after a lost answer, get the same successor within the grace window. Any other token that
        is not the current one has been stolen from somebody: its session ends, and its owner is told (RFC 9700, section
        4.14.2). Raises `InvalidRefreshTokenError`.
        """
        claims = self._signer.read_refresh(refresh_token)
        await begin_writing(self._session)
        rotated = await self._sessions.rotate(claims.session_id, claims.generation, idle=self._idle)
        if rotated is None:
            return await self._answer_again_or_revoke(claims, client)
        await self._session.commit()
        ends_at = min(rotated.idle_expires_at, rotated.expires_at)
        return self._pair(rotated.user_id, claims.session_id, claims.generation + 1, ends_at)

    async def log_out(self, caller: Principal) -> None:
        """End the caller's session; one that has ended stays ended."""
        async with self._audit.act(EventKind.LOG_OUT, by=caller, user_id=caller.user_id) as act:
            await begin_writing(self._session)
            await self._users.lock_users(caller.user_id)
            await self._sessions.revoke(caller.session_id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def log_out_by_refresh_token(self, refresh_token: str) -> None:
        """End the session of a refresh token. Raises `InvalidRefreshTokenError` for what is none."""
        async with self._audit.act(EventKind.LOG_OUT) as act:
            claims = self._signer.read_refresh(refresh_token)
            await begin_writing(self._session)
            session = await self._sessions.find_live(claims.session_id)
            if session:  # else it has ended already
                act.set_actor(session.user_id)
                await self._users.lock_users(session.user_id)
                await self._sessions.revoke(session.id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def list_sessions(self, caller: Principal) -> Sequence[SessionModel]:
        """The caller's live sessions, the newest first."""
        return await self._sessions.list_live(caller.user_id)

    async def revoke(self, caller: Principal, session_id: UUID) -> None:
        """End one of the caller's sessions. Raises `SessionNotFoundError` if they have no such live session."""
        async with self._audit.act(EventKind.SESSION_REVOCATION, by=caller, user_id=caller.user_id) as act:
            await begin_writing(self._session)
            await self._users.lock_users(caller.user_id)
            if not await self._sessions.revoke(session_id, user_id=caller.user_id):
                raise SessionNotFoundError
            await self._audit.succeeded(act)
            await self._session.commit()

    async def revoke_others(self, caller: Principal) -> None:
        """End every session of the caller but the one that asks."""
        async with self._audit.act(EventKind.SESSION_REVOCATION, by=caller, user_id=caller.user_id) as act:
            await begin_writing(self._session)
            await self._users.lock_users(caller.user_id)
            await self._sessions.revoke_all(caller.user_id, except_id=caller.session_id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def _start(self, user_id: UUID, client: Client) -> SessionModel:
        now = utc_now()
        session = SessionModel(
            user_id=user_id,
            last_used_at=now,
            idle_expires_at=now + self._idle,
            expires_at=now + timedelta(seconds=self._settings.auth_session_absolute_seconds),
            client_address=client.address,
            user_agent=client.user_agent,
        )
        await self._sessions.add(session)
        await self._sessions.revoke_oldest(user_id, keep=self._settings.auth_max_sessions_per_user)
        return session

    async def _answer_again_or_revoke(self, claims: RefreshClaims, client: Client) -> TokenPair:
        session = await self._sessions.find_live(claims.session_id)
        if session is None:
            raise InvalidRefreshTokenError
        grace = timedelta(seconds=self._settings.auth_refresh_grace_seconds)
        is_previous = session.generation == claims.generation + 1
        if is_previous and utc_now() < session.last_used_at + grace:
            return self._pair(session.user_id, session.id, session.generation, self._end(session))
        await begin_writing(self._session)  # losing a race has locked the session, and users come first
        await self._users.lock_users(session.user_id)
        if not await self._sessions.revoke(session.id):  # another replay was first, and has told of it
            raise InvalidRefreshTokenError
        replay = self._audit.describe(EventKind.REFRESH_REPLAY, user_id=session.user_id)
        await self._audit.failed(replay, InvalidRefreshTokenError.code)
        if self._outbox:
            owner = await self._users.get_by_id(session.user_id)
            await self._outbox.queue(
                MessageKind.REFRESH_REPLAYED, to=owner.email, user_id=owner.id, where=client.address
            )
        await self._session.commit()
        log.warning("A refresh token was replayed: session %s of user %s is revoked", session.id, session.user_id)
        raise InvalidRefreshTokenError

    def _end(self, session: SessionModel) -> datetime:
        return min(session.idle_expires_at, session.expires_at)

    def _pair(self, user_id: UUID, session_id: UUID, generation: int, ends_at: datetime) -> TokenPair:
        return TokenPair(
            user_id=user_id,
            access_token=self._signer.sign_access(user_id, session_id),
            expires_in=self._signer.access_lifetime,
            refresh_token=self._signer.sign_refresh(session_id, generation),
            refresh_expires_in=ends_at - utc_now(),
        )
