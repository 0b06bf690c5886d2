"""limit rates, and keep ended sessions for it"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "a7d20c94e3b1"
down_revision: str | None = "e81b6c5d2f09"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tat", sa.Double(), nullable=False),
        sa.Column("interval", sa.Double(), nullable=False),
        sa.Column("period", sa.Double(), nullable=False),
        sa.Column("reported_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_limits")),
    )
    op.create_index(
        "ix_sessions_user_id_id_live",
        "sessions",
        ["user_id", "id"],
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Nothing in it needs to outlive a crash of the database, after which everybody has all their places again.
        op.execute("ALTER TABLE rate_limits SET UNLOGGED")


def downgrade() -> None:
    op.drop_index("ix_sessions_user_id_id_live", "sessions")
    op.drop_table("rate_limits")
