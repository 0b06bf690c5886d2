"""How an account begins: somebody signs up or is invited, and proves that the address is theirs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Operator
from src.core.exceptions import InvalidTokenError, UserEmailTakenError, WrongPasswordError
from src.core.passwords import PasswordHasher, check_password
from src.core.settings import Settings
from src.db.database import begin_writing
from src.db.models import EventKind, TokenPurpose, UserModel
from src.db.repositories import UserRepository, UserTokenRepository
from src.email import MessageKind
from src.services.audit import Act, Audit
from src.services.outbox import Outbox

RESENT_LINKS = 3  # of the newest sign-ups
SIGN_UP_QUEUE_SHARE = 0.5  # of the places in the queue for hashing; the rest stays free for log-ins


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
    asks_password: bool  # several sign-ups wait for this address: which one is meant?


class AccountService:
    """`outbox` takes the mails; without one, links are in the answers."""

    def __init__(
        self,
        session: AsyncSession,
        *,
        settings: Settings,
        passwords: PasswordHasher,
        outbox: Outbox | None,
        audit: Audit,
    ) -> None:
        self._session = session
        self._users = UserRepository(session)
        self._tokens = UserTokenRepository(session)
        self._settings = settings
        self._passwords = passwords
        self._outbox = outbox
        self._audit = audit

    async def sign_up(self, *, email: str, password: str, name: str | None, signed_up_from: str | None) -> SignUp:
        """Begin an account. When the link travels by mail, nothing in the answer tells whether the address is known.

        Raises `ValidationException` for a weak password, `ServiceUnavailableException` when too many wait to be hashed
        and, where the answer would hold the link anyway, `UserEmailTakenError`.
        """
        async with self._audit.act(EventKind.SIGN_UP) as act:
            check_password(password, email=email, min_length=self._settings.auth_password_min_length)
            hashed_password = await self._passwords.hash(password, queue_share=SIGN_UP_QUEUE_SHARE)
            user = UserModel(email=email, hashed_password=hashed_password, name=name)
            await begin_writing(self._session)
            if self._settings.auth_auto_activate:
                return await self._register(user, act)
            return await self._register_pending(user, signed_up_from, act)

    async def activate(self, token: str) -> UUID:
        """Make the sign-up that came with this link the owner of its address; the others of the address end.

        Raises `InvalidTokenError`, also when another sign-up or account owns the address by now.
        """
        async with self._audit.act(EventKind.ACTIVATION) as act:
            await begin_writing(self._session)
            return await self._activate(token, TokenPurpose.ACTIVATION, act)

    async def preview_activation(self, token: str) -> PendingSignUp:
        """What the link would confirm. It changes nothing, since mail scanners follow links.

        Raises `InvalidTokenError`.
        """
        return (await self._find_pending(token))[0]

    async def confirm_activation(self, token: str, password: str | None) -> UUID | PendingSignUp:
        """`activate` for the page, where a person may click by habit: while several sign-ups of the address wait, it
        takes the password chosen at sign-up, and gives the sign-up back if that is missing or wrong.

        Raises `InvalidTokenError`.
        """
        async with self._audit.act(EventKind.ACTIVATION) as act:
            pending, hashed_password = await self._find_pending(token)
            if pending.asks_password and not password:
                return pending
            act.user_id = pending.user_id
            is_theirs = not pending.asks_password or await self._passwords.verify(password or "", hashed_password)
            await begin_writing(self._session)
            if is_theirs:
                return await self._activate(token, TokenPurpose.ACTIVATION, act)
            await self._audit.failed(act, WrongPasswordError.code)
            await self._session.commit()
            return pending

    async def preview_invitation(self, token: str) -> str:
        """The address that was invited; changes nothing. Raises `InvalidTokenError`."""
        user = await self._tokens.find_user(token, TokenPurpose.INVITATION)
        if user is None:
            raise InvalidTokenError
        return user.email

    async def accept_invitation(self, *, token: str, password: str) -> UUID:
        """Make the invited row the owner of its address, with the password that its owner chooses.

        Raises `InvalidTokenError`, and `ValidationException` for a weak password, which does not spend the link.
        """
        async with self._audit.act(EventKind.INVITATION_ACCEPTANCE) as act:
            user = await self._tokens.find_user(token, TokenPurpose.INVITATION)
            await self._session.close()
            if user is None:
                raise InvalidTokenError
            act.set_actor(user.id)
            check_password(password, email=user.email, min_length=self._settings.auth_password_min_length)
            hashed_password = await self._passwords.hash(password)
            await begin_writing(self._session)
            return await self._activate(token, TokenPurpose.INVITATION, act, hashed_password=hashed_password)

    async def create_admin(self, *, email: str, password: str) -> UUID:
        """An active administrator, from the command line. Sign-ups that wait for the address end.

        Raises `UserEmailTakenError`, and `ValidationException` for a weak password.
        """
        async with self._audit.act(EventKind.USER_CREATION, by=Operator()) as act:
            act.changes = "is_admin=true"
            check_password(password, email=email, min_length=self._settings.auth_password_min_length)
            hashed_password = await self._passwords.hash(password)
            await begin_writing(self._session)
            user = UserModel(email=email, hashed_password=hashed_password, is_admin=True)
            return (await self._register(user, act)).user_id

    async def resend_activation(self, email: str, *, requested_from: str | None) -> None:
        """Mail each of the newest live sign-ups of the address its own new link; an owner is told that they have an
        account. Does nothing where no mail is wired."""
        if self._outbox is None:
            return
        await begin_writing(self._session)
        await self._users.lock_address(email)
        owner = await self._users.find_owner(email)
        if owner:
            await self._outbox.queue(
                MessageKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id, where=requested_from
            )
        else:
            for user in await self._users.list_live_sign_ups(email, limit=RESENT_LINKS, lock=True):
                await self._queue_answer(self._outbox, user, None)
        await self._session.commit()

    async def _register(self, user: UserModel, act: Act) -> SignUp:
        await self._users.lock_address(user.email)
        if owner := await self._users.find_owner(user.email):
            act.user_id = owner.id
            raise UserEmailTakenError
        await self._users.delete_pending(user.email)
        await self._users.add(user)
        act.user_id = user.id
        await self._audit.succeeded(act)
        await self._session.commit()
        return SignUp(user.id, activation_required=False, activation_url=None)

    async def _register_pending(self, user: UserModel, signed_up_from: str | None, act: Act) -> SignUp:
        is_told = self._outbox is None or self._settings.auth_return_token_in_response
        await self._users.lock_address(user.email)  # an owner who leaves at this moment takes their mail along
        owner = await self._users.find_owner(user.email)
        if owner and is_told:
            act.user_id = owner.id
            raise UserEmailTakenError
        user.is_active, user.activated_at, user.signed_up_from = False, None, signed_up_from
        await self._users.add(user)
        url = await self._issue_link(user) if is_told else None
        if self._outbox and not is_told:
            await self._queue_answer(self._outbox, user, owner)
        act.user_id = user.id
        await self._audit.succeeded(act)
        await self._session.commit()
        return SignUp(user.id, activation_required=True, activation_url=url)

    async def _queue_answer(self, outbox: Outbox, user: UserModel, owner: UserModel | None) -> None:
        """A link for the new sign-up, a notice for the owner of a known address: the same work, and the same time."""
        if owner:
            await outbox.queue(
                MessageKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id, where=user.signed_up_from
            )
        else:
            await outbox.queue(
                MessageKind.ACTIVATION, to=user.email, user_id=user.id, where=user.signed_up_from, name=user.name
            )

    async def _issue_link(self, user: UserModel) -> str:
        lifetime = timedelta(seconds=self._settings.auth_activation_ttl_seconds)
        token = await self._tokens.issue(user.id, TokenPurpose.ACTIVATION, lifetime)
        return self._settings.link(self._settings.auth_activation_url_template, token)

    async def _find_pending(self, token: str) -> tuple[PendingSignUp, str]:
        """The sign-up and its hash, with no connection held afterwards: the next step may hash."""
        user = await self._tokens.find_user(token, TokenPurpose.ACTIVATION)
        if user is None:
            raise InvalidTokenError
        live = await self._users.list_live_sign_ups(user.email, limit=2)
        await self._session.close()
        sign_up = PendingSignUp(
            user_id=user.id,
            email=user.email,
            name=user.name,
            signed_up_at=user.created_at,
            signed_up_from=user.signed_up_from,
            asks_password=len(live) > 1,
        )
        return sign_up, user.hashed_password

    async def _activate(
        self, token: str, purpose: TokenPurpose, act: Act, *, hashed_password: str | None = None
    ) -> UUID:
        user = await self._tokens.find_user(token, purpose)
        if user is None:
            raise InvalidTokenError
        act.set_actor(user.id)
        await self._users.lock_address(user.email)
        if not await self._tokens.spend(token, purpose):
            raise InvalidTokenError
        try:
            is_activated = await self._users.activate(user.id, hashed_password=hashed_password)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_activated:
            raise InvalidTokenError
        if (await self._users.get_record(user.id)).is_admin:
            act.changes = "is_admin=true"
        await self._users.delete_pending(user.email)
        await self._audit.succeeded(act)
        await self._session.commit()
        return user.id
