"""Every table on one page."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Index, String, Table, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column, validates

from src.core.addresses import normalize_email
from src.db.base import BaseModel, UTCDateTime, utc_now


class BaseUserModel(BaseModel):
    """The columns that a table of users must have; a project may build its own users on it."""

    __abstract__ = True

    email: Mapped[str] = mapped_column(String(320))
    hashed_password: Mapped[str] = mapped_column(String(255))
    name: Mapped[str | None] = mapped_column(String(200))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    last_login_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    @validates("email")
    def _normalize_email(self, _key: str, address: str | None) -> str | None:
        return None if address is None else normalize_email(address)


class UserModel(BaseUserModel):
    """An account, or a sign-up that waits for its address to be confirmed (`activated_at` is null).

    An address may wait in many rows, each with its own password and link, but only one row may ever own it. So a
    stranger who signs up with somebody's address takes nothing from them: docs/decisions/0001 tells the whole story.
    """

    __tablename__ = "users"

    activated_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    signed_up_from: Mapped[str | None] = mapped_column(String(45))  # the client's address; forgotten at activation

    __table_args__ = (
        Index("ix_users_email", "email"),
        Index(
            "uq_users_email_activated",
            "email",
            unique=True,
            sqlite_where=text("activated_at IS NOT NULL"),
            postgresql_where=text("activated_at IS NOT NULL"),
        ),
        # The administrators, whom every change locks that could leave the service without one.
        Index("ix_users_admins", "id", sqlite_where=text("is_admin = 1"), postgresql_where=text("is_admin")),
        # Few of many, as lists ask for them.
        Index(
            "ix_users_disabled",
            "id",
            sqlite_where=text("is_active = 0 AND activated_at IS NOT NULL"),
            postgresql_where=text("NOT is_active AND activated_at IS NOT NULL"),
        ),
        Index(
            "ix_users_pending",
            "id",
            sqlite_where=text("activated_at IS NULL"),
            postgresql_where=text("activated_at IS NULL"),
        ),
    )

    def __init__(self, **values: Any) -> None:
        # Not a column default: with one, an explicit `activated_at=None` would be stored as activated.
        values.setdefault("activated_at", utc_now())
        super().__init__(**values)

    @property
    def is_active_admin(self) -> bool:
        return self.is_admin and self.is_active and self.activated_at is not None


class UserTokenModel(BaseModel):
    """A one-time token that has not been used: using it deletes it. The token itself is not stored, only its hash."""

    __tablename__ = "user_tokens"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[str] = mapped_column(String(32))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    failures: Mapped[int] = mapped_column(default=0)  # wrong codes, of a log-in that waits for its second factor
    # Of an e-mail change or its undoing: the address that it would bring, and the session that asked.
    new_email: Mapped[str | None] = mapped_column(String(320))
    session_id: Mapped[UUID | None] = mapped_column(ForeignKey("sessions.id", ondelete="SET NULL"), index=True)


class SessionModel(BaseModel):
    """A log-in that lasts. It stores which refresh token is the current one, by number, and no secret."""

    __tablename__ = "sessions"
    __table_args__ = (
        # Those of a user that have ended are kept for a while, and may be many.
        Index(
            "ix_sessions_user_id_id_live",
            "user_id",
            "id",
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    generation: Mapped[int] = mapped_column(default=1)
    last_used_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)  # log-in or refresh
    idle_expires_at: Mapped[datetime] = mapped_column(UTCDateTime)  # moves on with each refresh
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)  # however often it is refreshed
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    authenticated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)  # the last password or code
    second_factor_at: Mapped[datetime | None] = mapped_column(UTCDateTime)  # the last code
    client_address: Mapped[str | None] = mapped_column(String(45))
    user_agent: Mapped[str | None] = mapped_column(String(255))


class SecondFactorModel(BaseModel):
    """The secret that a user shares with an authenticator app (RFC 6238). Nobody is asked for its codes until a first
    one has confirmed that the app has it."""

    __tablename__ = "second_factors"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    encrypted_secret: Mapped[bytes]  # bound to the user: see `src.core.encryption`
    key_id: Mapped[str] = mapped_column(String(16), index=True)  # the key that decrypts it
    confirmed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_step: Mapped[int] = mapped_column(BigInteger, default=0)  # the time step of the last code: no older one works


class RecoveryCodeModel(BaseModel):
    """A code for who has lost the authenticator app. Using it deletes it; only its hash is stored."""

    __tablename__ = "recovery_codes"
    __table_args__ = (Index("uq_recovery_codes_user_id_code_hash", "user_id", "code_hash", unique=True),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    code_hash: Mapped[str] = mapped_column(String(64))


class OutboxStatus(StrEnum):
    QUEUED = "queued"
    SENT = "sent"
    DROPPED = "dropped"  # needs no sending: it is for nobody, has become pointless, or another that waits will do
    # Dead letters, which `python -m src outbox retry` queues again:
    DEAD = "dead"  # every attempt failed, for a reason of ours
    REFUSED = "refused"  # a mail server refused this recipient or this message: for good, or at every attempt


class OutboxEmailModel(BaseModel):
    """An email that is to be sent. It holds no link: the token is made when the email is sent."""

    __tablename__ = "outbox_emails"
    __table_args__ = (
        Index("ix_outbox_emails_status_due_at", "status", "due_at"),
        Index("ix_outbox_emails_to_email_status", "to_email", "status"),  # of thousands that were asked for, few wait
    )

    kind: Mapped[str] = mapped_column(String(32))
    # Whose account it is about; the email goes when they do. Null: nobody's any more, or nobody's ever.
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    to_email: Mapped[str] = mapped_column(String(320))
    content: Mapped[dict[str, str | None] | None] = mapped_column(JSON)  # what the template shows; forgotten when sent
    status: Mapped[str] = mapped_column(String(16), default=OutboxStatus.QUEUED)
    due_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    attempts: Mapped[int] = mapped_column(default=0)
    lease_id: Mapped[UUID | None]
    leased_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_error: Mapped[str | None] = mapped_column(String(100))


class ServiceClientModel(BaseModel):
    """Another service that may ask for access tokens (RFC 6749, section 4.4). Its secrets are not stored, only hashes.

    While a secret is rotated, the one before works too.
    """

    __tablename__ = "service_clients"
    __table_args__ = (
        Index(
            "uq_service_clients_name_live",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    name: Mapped[str] = mapped_column(String(100))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    secret_hash: Mapped[str] = mapped_column(String(64))
    rotated_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    previous_secret_hash: Mapped[str | None] = mapped_column(String(64))
    previous_expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class EventKind(StrEnum):
    """What is recorded, whoever tries it."""

    SIGN_UP = "sign_up"
    ACTIVATION = "activation"
    ACTIVATION_RESEND = "activation_resend"
    LOG_IN = "log_in"
    LOG_OUT = "log_out"
    REFRESH_REPLAY = "refresh_replay"
    SESSION_REVOCATION = "session_revocation"
    PASSWORD_CHANGE = "password_change"
    PASSWORD_RESET_REQUEST = "password_reset_request"
    PASSWORD_RESET = "password_reset"
    EMAIL_CHANGE_REQUEST = "email_change_request"
    EMAIL_CHANGE = "email_change"
    EMAIL_REVERT = "email_revert"
    ACCOUNT_DELETION = "account_deletion"
    INVITATION = "invitation"
    INVITATION_ACCEPTANCE = "invitation_acceptance"
    USER_CREATION = "user_creation"
    USER_IMPORT = "user_import"
    USER_UPDATE = "user_update"
    USER_DELETION = "user_deletion"
    CLIENT_CREATION = "client_creation"
    CLIENT_ROTATION = "client_rotation"
    CLIENT_REVOCATION = "client_revocation"
    CLIENT_TOKEN = "client_token"
    KEY_ROTATION = "key_rotation"
    KEY_RETIREMENT = "key_retirement"
    ACCESS_REFUSAL = "access_refusal"
    SECOND_FACTOR_SET_UP = "second_factor_set_up"
    SECOND_FACTOR_REMOVAL = "second_factor_removal"
    RECOVERY_CODE_RENEWAL = "recovery_code_renewal"
    REAUTHENTICATION = "reauthentication"


class EventOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


class AuditEventModel(BaseModel):
    """That somebody did something that matters to security, or was refused it. Rows are inserted and never changed.

    The one exception is the database's own: when a user is deleted, their ids become null, and with the id of whoever
    acted goes where they acted from (a trigger of the migration).
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_user_id_id", "user_id", "id"),
        Index("ix_audit_events_actor_id_id", "actor_id", "id"),
        Index("ix_audit_events_client_id_id", "client_id", "id"),
        Index("ix_audit_events_kind_id", "kind", "id"),
        Index("ix_audit_events_outcome_id", "outcome", "id"),
    )

    kind: Mapped[str] = mapped_column(String(32))
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))  # of a failure: the code that the caller was told
    # On whom, and who: a person, a service, or neither (nobody had proved who they are, or the command line).
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    actor_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("service_clients.id"))  # or on which service
    address_hash: Mapped[str | None] = mapped_column(String(64))  # keyed, of a typed address that nobody owns
    # Which fields an update changed and what rights it gave, what an import brought, or the ids of keys.
    changes: Mapped[str | None] = mapped_column(String(100))
    origin: Mapped[str | None] = mapped_column(String(45))  # the address of the client, or "command line"


# Not a model: a row is counted with, and never loaded. `src.db.repositories.rate_limits` tells how.
rate_limits = Table(
    "rate_limits",
    BaseModel.metadata,
    Column("id", Uuid, primary_key=True),  # a keyed hash of whom it limits in what
    Column("tat", Double, nullable=False),  # these are all in seconds, the times since 1970
    Column("interval", Double, nullable=False),
    Column("period", Double, nullable=False),
    Column("reported_until", Double, nullable=False, default=0.0),
)
