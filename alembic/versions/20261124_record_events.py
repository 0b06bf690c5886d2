"""record events, and know other services"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "e81b6c5d2f09"
down_revision: str | None = "c4a1f0be7d52"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# When a user is deleted, the foreign keys take their ids out of the events. Where somebody acted from is theirs too,
# but for the command line, which is nobody's address.
# On PostgreSQL the keys do so with the rights of the table's owner: the service itself needs none to change an event.
FORGET_ORIGIN_SQLITE = """
CREATE TRIGGER forget_origin AFTER UPDATE ON audit_events
WHEN NEW.actor_id IS NULL AND NEW.client_id IS NULL AND NEW.origin <> 'command line'
BEGIN
    UPDATE audit_events SET origin = NULL WHERE id = NEW.id;
END
"""
FORGET_ORIGIN_POSTGRESQL = """
CREATE FUNCTION forget_origin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.origin := NULL;
    RETURN NEW;
END
$$
"""
FORGET_ORIGIN_POSTGRESQL_TRIGGER = """
CREATE TRIGGER forget_origin BEFORE UPDATE ON audit_events FOR EACH ROW
WHEN (NEW.actor_id IS NULL AND NEW.client_id IS NULL AND NEW.origin <> 'command line')
EXECUTE FUNCTION forget_origin()
"""


def upgrade() -> None:
    op.create_index(
        "ix_users_admins", "users", ["id"], sqlite_where=sa.text("is_admin = 1"), postgresql_where=sa.text("is_admin")
    )
    op.create_table(
        "service_clients",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("previous_secret_hash", sa.String(length=64), nullable=True),
        sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_clients")),
    )
    op.create_index(
        "uq_service_clients_name_live",
        "service_clients",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("address_hash", sa.String(length=64), nullable=True),
        sa.Column("changes", sa.String(length=100), nullable=True),
        sa.Column("origin", sa.String(length=45), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_audit_events_user_id_users"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["actor_id"], ["users.id"], name=op.f("fk_audit_events_actor_id_users"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["service_clients.id"], name=op.f("fk_audit_events_client_id_service_clients")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index("ix_audit_events_user_id_id", "audit_events", ["user_id", "id"])
    op.create_index("ix_audit_events_kind_id", "audit_events", ["kind", "id"])
    op.create_index("ix_audit_events_created_at", "audit_events", ["created_at"])
    op.create_index(op.f("ix_audit_events_actor_id"), "audit_events", ["actor_id"])
    if op.get_context().dialect.name == "sqlite":
        op.execute(FORGET_ORIGIN_SQLITE)
    else:
        op.execute(FORGET_ORIGIN_POSTGRESQL)
        op.execute(FORGET_ORIGIN_POSTGRESQL_TRIGGER)


def downgrade() -> None:
    op.drop_table("audit_events")
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION forget_origin()")
    op.drop_table("service_clients")
    op.drop_index("ix_users_admins", "users")
