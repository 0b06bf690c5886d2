"""Versions of what is read, so that a change can say which one it means (RFC 9110, section 13.1.1)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Annotated

from fastapi import Depends, Header

from src.core.users import UserRecord

_values = attrgetter(*(field.name for field in fields(UserRecord)))
_public_values = attrgetter("id", "name", "is_active", "created_at")


def etag_of(record: UserRecord) -> str:
    """A strong tag: another whenever a value of the record is another."""
    return _tag(_values(record))


def public_etag_of(record: UserRecord) -> str:
    """Of what strangers see alone: a tag of the whole record would tell them when its owner logs in."""
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
