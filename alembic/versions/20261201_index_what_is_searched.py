"""index what lists search for, and events by their ids alone"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0b7e5d21c9f4"
down_revision: str | None = "f3c81e6ab5d4"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Names beside the columns of each index.
ADDED = {
    "audit_events": {
        "ix_audit_events_actor_id_id": ["actor_id", "id"],
        "ix_audit_events_client_id_id": ["client_id", "id"],
        "ix_audit_events_outcome_id": ["outcome", "id"],
    },
    "outbox_emails": {"ix_outbox_emails_to_email_status": ["to_email", "status"]},
}
DROPPED = {
    "audit_events": {
        "ix_audit_events_actor_id": ["actor_id"],
        "ix_audit_events_created_at": ["created_at"],
    },
    "outbox_emails": {"ix_outbox_emails_to_email": ["to_email"]},
}


def upgrade() -> None:
    op.create_index(
        "ix_users_disabled",
        "users",
        ["id"],
        sqlite_where=sa.text("is_active = 0 AND activated_at IS NOT NULL"),
        postgresql_where=sa.text("NOT is_active AND activated_at IS NOT NULL"),
    )
    op.create_index(
        "ix_users_pending",
        "users",
        ["id"],
        sqlite_where=sa.text("activated_at IS NULL"),
        postgresql_where=sa.text("activated_at IS NULL"),
    )
    _create(ADDED)
    _drop(DROPPED)


def downgrade() -> None:
    _create(DROPPED)
    _drop(ADDED)
    op.drop_index("ix_users_pending", "users")
    op.drop_index("ix_users_disabled", "users")


def _create(indexes: dict[str, dict[str, list[str]]]) -> None:
    for table, named in indexes.items():
        for name, columns in named.items():
            op.create_index(name, table, columns)


def _drop(indexes: dict[str, dict[str, list[str]]]) -> None:
    for table, named in indexes.items():
        for name in named:
            op.drop_index(name, table)
