"""keep sessions, and what an e-mail change would bring"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "a27df2d34466"
down_revision: str | None = "b15d14370105"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idle_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("client_address", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    with op.batch_alter_table("user_tokens") as user_tokens:
        user_tokens.add_column(sa.Column("new_email", sa.String(length=320), nullable=True))
        user_tokens.add_column(sa.Column("session_id", sa.Uuid(), nullable=True))
        user_tokens.create_index(op.f("ix_user_tokens_session_id"), ["session_id"])
        user_tokens.create_foreign_key(
            op.f("fk_user_tokens_session_id_sessions"), "sessions", ["session_id"], ["id"], ondelete="SET NULL"
        )


def downgrade() -> None:
    with op.batch_alter_table("user_tokens") as user_tokens:
        user_tokens.drop_constraint(op.f("fk_user_tokens_session_id_sessions"), type_="foreignkey")
        user_tokens.drop_index(op.f("ix_user_tokens_session_id"))
        user_tokens.drop_column("session_id")
        user_tokens.drop_column("new_email")
    op.drop_table("sessions")
