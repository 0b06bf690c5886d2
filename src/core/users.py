"""A user, as everything but the database sees one."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

EXAMPLE_ID = "01936f2e-5b1c-7d3a-9f10-2b6a1c0d4e5f"
EXAMPLE_TIME = "2026-11-24T10:30:00Z"


@dataclass(frozen=True, slots=True)
class UserRecord:
    """The whole record, as its owner and administrators see it. Never the hash."""

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    name: Annotated[str | None, Field(examples=["Ana"])]
    is_active: Annotated[bool, Field(examples=[True])]
    created_at: Annotated[datetime, Field(examples=[EXAMPLE_TIME])]
    email: Annotated[str, Field(examples=["ana@example.com"])]
    is_admin: Annotated[bool, Field(examples=[False])]
    activated_at: Annotated[
        datetime | None, Field(description="When the address was confirmed.", examples=[EXAMPLE_TIME])
    ]
    last_login_at: Annotated[datetime | None, Field(examples=[EXAMPLE_TIME])]
    updated_at: Annotated[datetime, Field(examples=[EXAMPLE_TIME])]
