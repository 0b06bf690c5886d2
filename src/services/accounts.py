"""How an account begins: somebody signs up or is invited, and proves that the address is theirs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from src.core.callers import Operator
from src.core.exceptions import (
    AppException,
    InvalidTokenError,
    PasswordNeededError,
    SignUpClosedError,
    UserEmailTakenError,
    UserNotFoundError,
)
from src.core.hash_pool import HashKind
from src.core.kinds import EmailKind, TokenPurpose
from src.db.base import utc_now
from src.db.models import EventKind, UserModel
from src.services.audit import AuditEvent
from src.services.context import Service
from src.services.outbox import issue_link

RESENT_LINKS = 3  # of the newest sign-ups


@dataclass(frozen=True, slots=True)
class SignUp:
    user_id: UUID
    activation_required: bool
    activation_url: str | None  # None when it is mailed


@dataclass(frozen=True, slots=True)
class PendingSignUp:
    """What the person who followed a link is about to confirm."""

    user_id: UUID
    email: str
    name: str | None
    signed_up_at: datetime
    signed_up_from: str | None
    asks_password: bool  # several sign-ups wait for this address, so their passwords may be strangers'


class AccountService(Service):
    async def sign_up(self, *, email: str, password: str, name: str | None) -> SignUp:
        """Begin an account. When the link travels by email, nothing in the answer tells whether the address is known.

        Raises `SignUpClosedError` where people come by invitation alone, `ValidationException` for a weak password,
        `TooManyRequestsException` after too many sign-ups, `ServiceUnavailableException` when too many wait to be
        hashed and, where the answer would hold the link anyway, `UserEmailTakenError`.
        """
        if self.settings.auth_sign_up == "invitation":
            raise SignUpClosedError  # before the recording: it is the same for all, and names nobody
        self._check_address(email)
        async with self.context.recording(EventKind.SIGN_UP) as event:
            self.context.passwords.require_room(HashKind.SIGN_UP)
            places = await self.context.limits.take_email(EventKind.SIGN_UP, email)
            # Or anybody could keep an address from signing up without a single email that lets its owner in.
            async with self.context.limits.given_back_on(AppException, places):
                await self._check_password(password, email=email)
                hashed_password = await self.context.passwords.hash(password, kind=HashKind.SIGN_UP)
            user = UserModel(email=email, hashed_password=hashed_password, name=name)
            await self.uow.begin()
            if self.settings.auth_auto_activate:
                await self._add_activated(user, event)
                await self.context.commit(event)
                return SignUp(user.id, activation_required=False, activation_url=None)
            url = await self._add_pending(user, event)
            await self.context.commit(event)
            return SignUp(user.id, activation_required=True, activation_url=url)

    async def preview_activation(self, token: str) -> PendingSignUp:
        """What the link would confirm. It changes nothing, since mail scanners follow links.

        Raises `InvalidTokenError`.
        """
        user = await self._get_token_user(token, TokenPurpose.ACTIVATION)
        return PendingSignUp(
            user_id=user.id,
            email=user.email,
            name=user.name,
            signed_up_at=user.created_at,
            signed_up_from=user.signed_up_from,
            asks_password=await self._has_other_sign_up(user),
        )

    async def activate(self, token: str, *, new_password: str | None, field: str = "password") -> UUID:
        """Make the sign-up of this link the owner of its address; the others of the address end.

        The link proves the address, and whoever proves the address decides the password. While other sign-ups wait, it
        is `new_password`, since a stranger may have sent the sign-up's own; else it is the sign-up's own.

        Raises `InvalidTokenError`, also when another sign-up or account owns the address by now. The link stays good
        after `PasswordNeededError`, and after `ValidationException` (for `field`) when the new password is weak.
        """
        async with self.context.recording(EventKind.ACTIVATION) as event:
            await self.context.limits.take_request()
            user = await self._get_token_user(token, TokenPurpose.ACTIVATION)
            event.set_actor(user.id)
            new_hash = None
            if new_password is not None and await self._has_other_sign_up(user):
                await self._check_password(new_password, email=user.email, field=field)
                new_hash = await self.context.passwords.hash(new_password, kind=HashKind.ACCOUNT_CHANGE)
            await self.uow.begin()
            await self.uow.users.lock_addresses(user.email)
            if new_hash is None and await self._has_other_sign_up(user):  # it may have come meanwhile
                raise PasswordNeededError
            await self._activate(user, token, TokenPurpose.ACTIVATION, event, hashed_password=new_hash)
            await self.context.commit(event)
            return user.id

    async def preview_invitation(self, token: str) -> str:
        """The address that was invited; changes nothing. Raises `InvalidTokenError`."""
        return (await self._get_token_user(token, TokenPurpose.INVITATION)).email

    async def accept_invitation(self, *, token: str, password: str) -> UUID:
        """Make the invited row the owner of its address, with the password that its owner chooses.

        Raises `InvalidTokenError`, and `ValidationException` for a weak password, which does not consume the link.
        """
        async with self.context.recording(EventKind.INVITATION_ACCEPTANCE) as event:
            await self.context.limits.take_request()
            user = await self._get_token_user(token, TokenPurpose.INVITATION)
            event.set_actor(user.id)
            await self._check_password(password, email=user.email)
            hashed_password = await self.context.passwords.hash(password, kind=HashKind.ACCOUNT_CHANGE)
            await self.uow.begin()
            await self.uow.users.lock_addresses(user.email)
            await self._activate(user, token, TokenPurpose.INVITATION, event, hashed_password=hashed_password)
            await self.context.commit(event)
            return user.id

    async def create_admin(self, *, email: str, password: str) -> UUID:
        """An active administrator, from the command line. Sign-ups that wait for the address end.

        Raises `UserEmailTakenError`, and `ValidationException` for a weak password.
        """
        async with self.context.recording(EventKind.USER_CREATION, by=Operator()) as event:
            event.changes = "is_admin=true"
            self._check_address(email)
            await self._check_password(password, email=email)
            hashed_password = await self.context.passwords.hash(password, kind=HashKind.ACCOUNT_CHANGE)
            user = UserModel(email=email, hashed_password=hashed_password, is_admin=True)
            await self.uow.begin()
            await self._add_activated(user, event)
            await self.context.commit(event)
            return user.id

    async def resend_activation(self, email: str) -> None:
        """Email each of the newest sign-ups of the address its own new link, or tell its owner that they have an
        account. A sign-up lives no longer for it. Does nothing where SMTP is not configured.

        For every address as many emails are written, so that the time that it takes does not tell which one is known.
        """
        if not self.context.outbox.is_wired:
            return
        await self.context.limits.take_email(EventKind.ACTIVATION_RESEND, email)
        event = self.context.audit.new_event(EventKind.ACTIVATION_RESEND)
        await self.uow.begin()
        await self.uow.users.lock_addresses(email)
        owner = await self.uow.users.find_owner(email)
        sign_ups = await self.uow.users.list_sign_ups(email, created_after=self._live_since(), limit=RESENT_LINKS)
        recipients = [owner] if owner else sign_ups
        for _ in range(RESENT_LINKS - len(recipients)):
            await self.context.notify(EmailKind.ACTIVATION, to=email, user_id=None, is_for_nobody=True)
        for user in recipients:
            await self._queue_link_or_notice(user)
        event.user_id = recipients[0].id if recipients else None
        await self.context.commit(event, failure=None if recipients else UserNotFoundError.code)

    async def _add_activated(self, user: UserModel, event: AuditEvent) -> None:
        await self.uow.users.lock_addresses(user.email)
        if owner := await self.uow.users.find_owner(user.email):
            event.user_id = owner.id
            raise UserEmailTakenError
        await self.uow.users.delete_pending(user.email)
        await self.uow.users.add(user)
        event.user_id = user.id

    async def _add_pending(self, user: UserModel, event: AuditEvent) -> str | None:
        """Add the sign-up, and its link: returned, or queued as an email. For an address that has an owner, a notice to
        them is queued instead: the same work, and the same time."""
        await self.uow.users.lock_owner(user.email)  # who leaves at this moment takes their emails along
        owner = await self.uow.users.find_owner(user.email)
        if owner and self.context.link_in_response:
            event.user_id = owner.id
            raise UserEmailTakenError
        user.is_active, user.activated_at, user.signed_up_from = False, None, self.context.origin.address
        await self.uow.users.add(user)
        event.user_id = user.id
        if self.context.link_in_response:
            return await issue_link(self.uow, self.settings, EmailKind.ACTIVATION, user.id, begins_at=user.created_at)
        await self._queue_link_or_notice(owner or user)
        return None

    async def _queue_link_or_notice(self, user: UserModel) -> None:
        """To a sign-up its link, to an owner the notice that they have an account."""
        if user.activated_at is not None:
            await self.context.notify(EmailKind.ALREADY_REGISTERED, to=user.email, user_id=user.id)
            return
        # The address is not proved, and a stranger may have written the name: the email must not bring it. Templates of
        # a deployment that show a name get none.
        await self.context.outbox.queue(
            EmailKind.ACTIVATION, to=user.email, user_id=user.id, where=user.signed_up_from, name=None
        )

    async def _get_token_user(self, token: str, purpose: TokenPurpose) -> UserModel:
        user = await self.uow.tokens.find_user(token, purpose)
        if user is None:
            raise InvalidTokenError
        return user

    async def _has_other_sign_up(self, user: UserModel) -> bool:
        return await self.uow.users.has_other_sign_up(user, created_after=self._live_since())

    def _live_since(self) -> datetime:
        """Sign-ups that began before then are over. A new link renews none: only addresses without an owner get one, so
        how long the row of a sign-up can be read would tell which addresses have an owner."""
        return utc_now() - timedelta(seconds=self.settings.auth_activation_ttl_seconds)

    async def _activate(
        self, user: UserModel, token: str, purpose: TokenPurpose, event: AuditEvent, *, hashed_password: str | None
    ) -> None:
        """Consume the link and make its row the owner of the address, whose rows are locked."""
        if not await self.uow.tokens.consume(token, purpose):
            raise InvalidTokenError
        try:
            is_activated = await self.uow.users.activate(user.id, hashed_password=hashed_password)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_activated:
            raise InvalidTokenError
        if (await self.uow.users.get_record(user.id)).is_admin:
            event.changes = "is_admin=true"
        await self.uow.users.delete_pending(user.email)
        await self.context.limits.forgive(user.email)
