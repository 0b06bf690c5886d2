"""Users, as they are read, listed, changed and invited."""

from datetime import datetime
from typing import Annotated, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from src.api.schemas.fields import EXAMPLE_TOKEN, Body, NextCursor, Query
from src.core.fields import Email, Name, SearchText
from src.core.users import EXAMPLE_ID, EXAMPLE_TIME, UserRecord
from src.db.repositories import Order
from src.services.users import UserChanges


class PublicProfile(BaseModel):
    """What anyone may see of a user."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    name: Annotated[str | None, Field(examples=["Ana"])]
    is_active: Annotated[bool, Field(examples=[True])]
    created_at: Annotated[datetime, Field(examples=[EXAMPLE_TIME])]


class UserPage(BaseModel):
    items: list[UserRecord]
    next_cursor: NextCursor


class CountedUserPage(UserPage):
    count: Annotated[int, Field(description="How many users match, on all pages.", examples=[1])]


class UserQuery(Query):
    """Which users, and in what order. All filters that are given must hold."""

    email: Annotated[Email | None, Field(description="Exactly this address.")] = None
    name: Annotated[SearchText | None, Field(description="A part of the name, in any case.")] = None
    is_active: bool | None = None
    is_admin: bool | None = None
    pending: Annotated[
        bool, Field(description="Sign-ups and invitations that wait to be confirmed, instead of accounts.")
    ] = False
    order: Order = "oldest"
    count: Annotated[bool, Field(description="Also count all users that match, which takes its time.")] = False


class InviteRequest(Body):
    email: Email
    name: Name | None = None
    is_admin: Annotated[bool, Field(strict=True, examples=[False])] = False


class InvitationResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    invitation_url: Annotated[
        str | None,
        Field(
            description="The link to follow; null when it was mailed.",
            examples=[f"http://localhost:8000/invitation?token={EXAMPLE_TOKEN}"],
        ),
    ]


def _without_default(schema: dict[str, object]) -> None:
    # It only marks the field as one that may be left out.
    del schema["default"]


class UserPatch(Body):
    """What is left out stays as it is."""

    name: Annotated[Name | None, Field(json_schema_extra=_without_default)] = None
    is_active: Annotated[bool, Field(strict=True, examples=[True], json_schema_extra=_without_default)] = True
    is_admin: Annotated[bool, Field(strict=True, examples=[False], json_schema_extra=_without_default)] = False

    def changes(self) -> UserChanges:
        """Only what was sent."""
        return cast("UserChanges", self.model_dump(exclude_unset=True))
