"""Sessions: how people log in, stay logged in, and log out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from src.core.callers import AuthenticatedUser
from src.core.exceptions import (
    InvalidAccessTokenError,
    InvalidCodeError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    InvalidSecondFactorTokenError,
    SecondFactorNotSetError,
    SecondFactorRequiredError,
    ServiceUnavailableException,
    SessionNotFoundError,
)
from src.core.hash_pool import HashKind
from src.core.kinds import EmailKind, TokenPurpose
from src.core.limits import Place
from src.core.passwords import needs_rehash
from src.core.tokens import FIRST_PARTY_CLIENT_ID, AccessClaims, RefreshClaims
from src.db.base import utc_now
from src.db.models import EventKind, SessionModel, UserModel
from src.db.repositories import RotatedSession
from src.services.audit import AuditEvent
from src.services.context import Service
from src.services.proofs import consume_code, prove_second_factor, reauthorize, require_code, take_code, verify_password

log = logging.getLogger(__name__)

PLACE_KNOWN_FOR = timedelta(days=30)
SECOND_FACTOR_TOKEN_LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TokenPair:
    user_id: UUID
    access_token: str
    expires_in: timedelta
    refresh_token: str
    refresh_expires_in: timedelta


@dataclass(frozen=True, slots=True)
class SecondFactorRequired:
    """The password was right, and a code is still to come: the token stands for the password until then."""

    token: str
    expires_in: timedelta


@dataclass(frozen=True, slots=True)
class _Verified:
    """Whose password was right, what is stored of it from now on, and what a log-in gives back."""

    owner: UserModel
    new_hash: str
    places: Sequence[Place]


class SessionService(Service):
    async def log_in(
        self, *, email: str, password: str, code: str | None = None, resources: Sequence[str] = ()
    ) -> TokenPair | SecondFactorRequired:
        """Start a session. The oldest of too many ends, and a hash of lower cost or foreign kind is upgraded.

        Without a code, an account that has a second factor gets no session but a token for `finish_log_in`. Until then
        the log-in has no effect: it counts as a wrong guess.

        Raises `InvalidCredentialsError` after the same work for a wrong password and an unknown, pending or disabled
        account, `InvalidCodeError` after a right password alone, `TooManyRequestsException` after too many wrong ones,
        `ServiceUnavailableException` when too many wait to be hashed, and `InvalidTargetError`.
        """
        audience = self.context.signer.choose_audience(resources)
        async with self.context.recording(EventKind.LOG_IN) as event:
            verified = await self._verify(email, password, event, has_code=code is not None)
            owner, places = verified.owner, verified.places
            if code is not None:
                places = [*places, *await self.context.limits.take_code(owner.id, in_session=False)]
            await self.uow.begin()
            await self.uow.users.lock_users(owner.id)
            factor = await self.uow.second_factors.find_confirmed(owner.id)
            if factor:
                if code is None:
                    token = await self._issue_second_factor_token(owner)
                    await self.context.commit(event, failure=SecondFactorRequiredError.code)
                    return SecondFactorRequired(token, SECOND_FACTOR_TOKEN_LIFETIME)
                if not await consume_code(self.context, factor, code, email=owner.email):
                    raise InvalidCodeError
            if not await self.uow.users.record_login(
                owner.id, seen_hash=owner.hashed_password, new_hash=verified.new_hash
            ):
                raise InvalidCredentialsError
            session = await self._start_session(owner, by_code=factor is not None)
            await self.context.limits.give_back(places)
            event.set_actor(owner.id)
            await self.context.commit(event)
        return self._pair(session, session.id, session.generation, audience)

    async def finish_log_in(self, *, token: str, code: str) -> TokenPair:
        """Start the session of a log-in whose password was right, by a code of the second factor.

        A wrong code is counted against the token, which the fifth ends. Raises `InvalidSecondFactorTokenError`,
        `InvalidCodeError`, and `TooManyRequestsException` after too many wrong codes of whatever token.
        """
        async with self.context.recording(EventKind.LOG_IN) as event:
            await self.context.limits.take_request()
            owner = await self.uow.tokens.find_user(token, TokenPurpose.SECOND_FACTOR)
            if owner is None:
                raise InvalidSecondFactorTokenError
            event.user_id = owner.id
            places = await self.context.limits.take_code(owner.id, in_session=False)
            async with self.context.limits.given_back_on(ServiceUnavailableException, places):
                await self.uow.begin()
                session = await self._start_session_by_code(owner, token, code)
            if session:
                await self.context.limits.give_back([*places, *self.context.limits.guess_places(owner.email)])
                event.set_actor(owner.id)
            await self.context.commit(event, failure=None if session else InvalidCodeError.code)
        if session is None:
            raise InvalidCodeError
        return self._pair(session, session.id, session.generation, self.context.signer.audience)

    async def refresh(self, refresh_token: str, *, resources: Sequence[str] = ()) -> TokenPair:
        """Exchange a refresh token for the next one.

        Two tabs, or a retry after a lost answer, get the same successor within the grace window. Any other token that
        is not the current one has been stolen from somebody: its session ends, and its owner is notified (RFC 9700,
        section 4.14.2). Raises `InvalidRefreshTokenError`, and `InvalidTargetError` before the token is used.
        """
        audience = self.context.signer.choose_audience(resources)
        claims = self.context.signer.read_refresh(refresh_token)
        idle = timedelta(seconds=self.settings.auth_session_idle_seconds)
        rotated = await self.uow.sessions.rotate(claims.session_id, claims.generation, idle=idle)
        if rotated:
            return self._pair(rotated, claims.session_id, claims.generation + 1, audience)
        session = await self.uow.sessions.find_live(claims.session_id)
        if session is None:
            raise InvalidRefreshTokenError
        if self._is_retry(claims, session):
            return self._pair(session, session.id, session.generation, audience)
        await self.uow.begin()
        await self.uow.users.lock_users(session.user_id)
        if not await self.uow.sessions.revoke(session.id):  # another replay was first, and its owner has been notified
            raise InvalidRefreshTokenError
        owner = await self.uow.users.get_record(session.user_id)
        await self.context.notify(EmailKind.REFRESH_REPLAYED, to=owner.email, user_id=owner.id)
        replay = self.context.audit.new_event(EventKind.REFRESH_REPLAY, user_id=owner.id)
        await self.context.commit(replay, failure=InvalidRefreshTokenError.code)
        log.warning("A refresh token was replayed: session %s of user %s is revoked", session.id, owner.id)
        raise InvalidRefreshTokenError

    async def log_out(self, caller: AuthenticatedUser) -> None:
        """End the caller's session; one that has ended stays ended."""
        async with self.context.recording(EventKind.LOG_OUT, by=caller, user_id=caller.user_id) as event:
            await self.uow.begin()
            await self.uow.users.lock_users(caller.user_id)
            await self.uow.sessions.revoke(caller.session_id)
            await self.context.commit(event)

    async def log_out_by_refresh_token(self, refresh_token: str) -> None:
        """End the session of a refresh token; one that has ended stays ended.

        Raises `InvalidRefreshTokenError` for what is none.
        """
        async with self.context.recording(EventKind.LOG_OUT) as event:
            claims = self.context.signer.read_refresh(refresh_token)
            if await self._end_session(event, claims.session_id):
                await self.context.commit(event)

    async def revoke_token(self, token: str) -> None:
        """End the session of a token, whoever holds it (RFC 7009). Any other token changes nothing; so does one for
        another resource: who is sent such a token must not be able to log its owner out."""
        session_id = self._find_session_id(token)
        if session_id is None:
            return
        async with self.context.recording(EventKind.LOG_OUT) as event:
            if await self._end_session(event, session_id):
                await self.context.commit(event)

    async def introspect(self, token: str) -> dict[str, Any] | None:
        """What a token says that would be accepted right now, by us or by its resource; `None` of any other.

        Looking at a refresh token neither uses it nor counts as a replay.
        """
        try:
            claims = self.context.signer.read_refresh(token)
        except InvalidRefreshTokenError:
            return await self._introspect_access(token)
        session = await self.uow.sessions.find_live(claims.session_id)
        if session is None or not (session.generation == claims.generation or self._is_retry(claims, session)):
            return None
        return {
            "iss": self.context.signer.issuer,
            "sub": str(session.user_id),
            "client_id": FIRST_PARTY_CLIENT_ID,
            "sid": str(session.id),
            "exp": int(min(session.idle_expires_at, session.expires_at).timestamp()),
        }

    async def revoke(self, caller: AuthenticatedUser, session_id: UUID) -> None:
        """End one of the caller's sessions. Raises `SessionNotFoundError` if they have no such live session."""
        async with self.context.recording(EventKind.SESSION_REVOCATION, by=caller, user_id=caller.user_id) as event:
            await self.uow.begin()
            await self.uow.users.lock_users(caller.user_id)
            if not await self.uow.sessions.revoke(session_id, user_id=caller.user_id):
                raise SessionNotFoundError
            await self.context.commit(event)

    async def revoke_others(self, caller: AuthenticatedUser) -> None:
        """End every session of the caller but the one that asks."""
        async with self.context.recording(EventKind.SESSION_REVOCATION, by=caller, user_id=caller.user_id) as event:
            await self.uow.begin()
            await self.uow.users.lock_users(caller.user_id)
            await self.uow.sessions.revoke_all(caller.user_id, except_id=caller.session_id)
            await self.context.commit(event)

    async def reauthenticate(self, caller: AuthenticatedUser, *, password: str | None, code: str | None) -> None:
        """Prove once more who the caller is, by the password or by a code of the second factor, for what needs a recent
        proof in this session.

        Raises `WrongPasswordError`, `WrongCodeError`, `SecondFactorNotSetError`, `SecondFactorRequiredError` for the
        password alone where a factor is set, and `InvalidAccessTokenError` if the session has ended meanwhile.
        """
        async with self.context.recording(EventKind.REAUTHENTICATION, by=caller, user_id=caller.user_id) as event:
            if password is not None:
                await require_code(self.context, caller, None)
                verified = await verify_password(self.context, caller, password)
                await self.uow.begin()
                await reauthorize(self.context, caller, verified)
                # Else a thief of an administrator's session and password could make another, who resets the factor.
                await prove_second_factor(self.context, caller, None, [])
            else:
                code_places = await take_code(self.context, caller, code)
                await self.uow.begin()
                await self.uow.users.lock_users(caller.user_id)
                if not await self.uow.second_factors.is_set(caller.user_id):
                    raise SecondFactorNotSetError
                await prove_second_factor(self.context, caller, code, code_places)
            if not await self.uow.sessions.renew_proof(caller.session_id, by_code=False):
                raise InvalidAccessTokenError
            await self.context.commit(event)

    async def _verify(self, email: str, password: str, event: AuditEvent, *, has_code: bool) -> _Verified:
        """Raises `InvalidCredentialsError`, after the same work for whatever reason."""
        passwords = self.context.passwords
        event.address = email
        passwords.require_room(HashKind.LOG_IN)
        places = await self.context.limits.take_guess(email)
        owner = await self.uow.users.find_owner(email)
        if owner:
            event.user_id, event.address = owner.id, None
        stored = owner.hashed_password if owner else None
        # A flood of the queue must not make the owner's attempts, none of which was tried, wrong ones.
        async with self.context.limits.given_back_on(ServiceUnavailableException, places):
            is_right = await passwords.verify(password, stored, kind=HashKind.LOG_IN)
            if owner is None or not owner.is_active or not is_right:
                raise InvalidCredentialsError
            new_hash = owner.hashed_password
            # Not where a code is still missing: until then nothing changes.
            is_due = needs_rehash(owner.hashed_password, self.settings.auth_bcrypt_rounds)
            if is_due and (has_code or not await self.uow.second_factors.is_set(owner.id)):
                new_hash = await passwords.hash(password, kind=HashKind.LOG_IN)
        return _Verified(owner, new_hash, places)

    async def _start_session_by_code(self, owner: UserModel, token: str, code: str) -> SessionModel | None:
        """`None` for a wrong code, which counts against the token. Raises `InvalidSecondFactorTokenError`."""
        await self.uow.users.lock_users(owner.id)
        # Others may have used or ended it meanwhile: then no code is looked at, or they would learn which one is right.
        is_usable = await self.uow.tokens.find_user(token, TokenPurpose.SECOND_FACTOR) is not None
        factor = await self.uow.second_factors.find_confirmed(owner.id)
        if not is_usable or factor is None:
            raise InvalidSecondFactorTokenError
        if not await consume_code(self.context, factor, code, email=owner.email):
            await self.uow.tokens.count_failure(token, TokenPurpose.SECOND_FACTOR)
            return None
        await self.uow.tokens.consume(token, TokenPurpose.SECOND_FACTOR)
        seen = owner.hashed_password
        if not await self.uow.users.record_login(owner.id, seen_hash=seen, new_hash=seen):
            raise InvalidSecondFactorTokenError
        return await self._start_session(owner, by_code=True)

    async def _issue_second_factor_token(self, owner: UserModel) -> str:
        """Raises `InvalidCredentialsError` if the password has changed, or the account has been disabled or deleted,
        while it was verified. The account must be locked."""
        seen = {"id": owner.id, "hashed_password": owner.hashed_password, "is_active": True}
        if not await self.uow.users.exists(seen):
            raise InvalidCredentialsError
        expires_at = utc_now() + SECOND_FACTOR_TOKEN_LIFETIME
        return await self.uow.tokens.issue(owner.id, TokenPurpose.SECOND_FACTOR, expires_at=expires_at)

    async def _end_session(self, event: AuditEvent, session_id: UUID) -> bool:
        """False if it has ended already: an event of that would name nobody."""
        await self.uow.begin()
        session = await self.uow.sessions.find_live(session_id)
        if session is None:
            return False
        event.set_actor(session.user_id)
        await self.uow.users.lock_users(session.user_id)
        return await self.uow.sessions.revoke(session.id)

    def _find_session_id(self, token: str) -> UUID | None:
        signer = self.context.signer
        try:
            return signer.read_refresh(token).session_id
        except InvalidRefreshTokenError:
            pass  # it may be an access token
        try:
            claims = signer.read_access(token)
        except InvalidAccessTokenError:
            return None
        return claims.session_id if isinstance(claims, AccessClaims) else None

    async def _introspect_access(self, token: str) -> dict[str, Any] | None:
        try:
            whose, claims = self.context.signer.inspect_access(token)
        except InvalidAccessTokenError:
            return None
        if isinstance(whose, AccessClaims):
            is_live = await self.uow.sessions.find_caller(whose.user_id, whose.session_id) is not None
        else:
            is_live = await self.uow.clients.is_live(whose.client_id)
        return {"token_type": "Bearer"} | claims if is_live else None

    async def _start_session(self, owner: UserModel, *, by_code: bool) -> SessionModel:
        await self._notify_of_new_place(owner)
        now = utc_now()
        session = SessionModel(
            user_id=owner.id,
            last_used_at=now,
            idle_expires_at=now + timedelta(seconds=self.settings.auth_session_idle_seconds),
            expires_at=now + timedelta(seconds=self.settings.auth_session_absolute_seconds),
            authenticated_at=now,
            second_factor_at=now if by_code else None,
            client_address=self.context.origin.address,
            user_agent=self.context.origin.user_agent,
        )
        await self.uow.sessions.add(session)
        await self.uow.sessions.revoke_oldest(owner.id, keep=self.settings.auth_max_sessions_per_user)
        return session

    async def _notify_of_new_place(self, owner: UserModel) -> None:
        """Tell the owner of a log-in from where, or with what, they did not log in lately; not of their first."""
        if not self.settings.auth_notify_new_log_ins or not self.context.outbox.is_wired or owner.last_login_at is None:
            return
        origin = self.context.origin
        known = await self.uow.sessions.list_origins(owner.id, since=utc_now() - PLACE_KNOWN_FOR)
        if any(origin.is_same_place(each) for each in known):
            return
        if await self.context.limits.may_notify(EmailKind.NEW_LOG_IN, owner.email):
            await self.context.notify(EmailKind.NEW_LOG_IN, to=owner.email, user_id=owner.id, browser=origin.browser)

    def _is_retry(self, claims: RefreshClaims, session: SessionModel) -> bool:
        """Whether the token is the one before the current one, and was exchanged a moment ago."""
        grace = timedelta(seconds=self.settings.auth_refresh_grace_seconds)
        return session.generation == claims.generation + 1 and utc_now() < session.last_used_at + grace

    def _pair(
        self, session: SessionModel | RotatedSession, session_id: UUID, generation: int, audience: str
    ) -> TokenPair:
        signer = self.context.signer
        return TokenPair(
            user_id=session.user_id,
            access_token=signer.sign_access(
                session.user_id,
                session_id,
                authenticated_at=session.authenticated_at,
                second_factor_at=session.second_factor_at,
                audience=audience,
            ),
            expires_in=signer.access_lifetime,
            refresh_token=signer.sign_refresh(session_id, generation),
            refresh_expires_in=min(session.idle_expires_at, session.expires_at) - utc_now(),
        )
