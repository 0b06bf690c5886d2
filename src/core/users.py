"""A user, as everything but the database sees one."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

EXAMPLE_ID = "01936f2e-5b1c-7d3a-9f10-2b6a1c0d4e5f"


@dataclass(frozen=True, slots=True)
class UserRecord:
    """The whole record, as its owner and administrators see it. Never the hash."""

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    name: Annotated[str | None, Field(examples=["Ana"])]
    is_active: bool
    created_at: datetime
    email: Annotated[str, Field(examples=["ana@example.com"])]
    is_admin: bool
    activated_at: Annotated[datetime | None, Field(description="When the address was confirmed.")]
    last_login_at: datetime | None
    updated_at: datetime
