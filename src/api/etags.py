"""Versions of what is read, so that a change can say which one it means (RFC 9110, section 13.1.1)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Annotated, Any

from fastapi import Depends, Header

from src.core.users import UserRecord

# A log-in is no change: an administrator's If-Match would fail for nothing. No cache may keep these answers, so a tag
# serves If-Match alone.
_values = attrgetter(*(field.name for field in fields(UserRecord) if field.name != "last_login_at"))
_public_values = attrgetter("id", "name", "is_active", "created_at")

# For a route's `responses`.
ETAG_HEADER: dict[int | str, dict[str, Any]] = {200: {"headers": {"ETag": {"$ref": "#/components/headers/ETag"}}}}


def etag_of(record: UserRecord) -> str:
    """Another whenever a value of the record is another, but for the time of the last log-in."""
    return _tag(_values(record))


def public_etag_of(record: UserRecord) -> str:
    """Of what strangers see alone: a tag of the whole record would tell them of changes that they cannot see."""
    return _tag(_public_values(record))


def _tag(values: Sequence[object]) -> str:
    return f'"{hashlib.sha256(repr(values).encode()).hexdigest()[:32]}"'


async def get_precondition(
    if_match: Annotated[
        str | None, Header(max_length=1000, description="The `ETag` that you read: a 412 if it is another by now.")
    ] = None,
) -> Callable[[UserRecord], bool] | None:
    """Whether a user is as the caller has read them; `None` where any version will do. A weak tag never matches."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = {tag.strip() for tag in if_match.split(",")}
    return lambda record: etag_of(record) in tags


IfMatch = Annotated[Callable[[UserRecord], bool] | None, Depends(get_precondition)]
