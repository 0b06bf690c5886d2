"""ask for second factors, and remember when somebody proved who they are"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "f3c81e6ab5d4"
down_revision: str | None = "a7d20c94e3b1"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "second_factors",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("encrypted_secret", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_second_factors_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_second_factors")),
        sa.UniqueConstraint("user_id", name=op.f("uq_second_factors_user_id")),
    )
    op.create_index(op.f("ix_second_factors_key_id"), "second_factors", ["key_id"])
    op.create_table(
        "recovery_codes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_recovery_codes_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovery_codes")),
    )
    op.create_index("uq_recovery_codes_user_id_code_hash", "recovery_codes", ["user_id", "code_hash"], unique=True)
    with op.batch_alter_table("user_tokens") as user_tokens:
        user_tokens.add_column(sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("authenticated_at", sa.DateTime(timezone=True), nullable=True))
        sessions.add_column(sa.Column("second_factor_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE sessions SET authenticated_at = created_at")
    with op.batch_alter_table("sessions") as sessions:
        sessions.alter_column("authenticated_at", existing_type=sa.DateTime(timezone=True), nullable=False)
    with op.batch_alter_table("user_tokens") as user_tokens:
        user_tokens.alter_column("failures", existing_type=sa.Integer(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.drop_column("second_factor_at")
        sessions.drop_column("authenticated_at")
    with op.batch_alter_table("user_tokens") as user_tokens:
        user_tokens.drop_column("failures")
    op.drop_table("recovery_codes")
    op.drop_table("second_factors")
