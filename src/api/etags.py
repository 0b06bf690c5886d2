"""Versions of what is read, so that a change can say which one it means (RFC 9110, section 13.1.1)."""

from collections.abc import Collection, Sequence
from typing import Annotated

from fastapi import Depends, Header

from src.services.users import version_of


def etag_of(values: Sequence[object]) -> str:
    return f'"{version_of(values)}"'


def get_versions(
    if_match: Annotated[
        str | None, Header(max_length=1000, description="The `ETag` that you read: a 412 if it is another by now.")
    ] = None,
) -> Collection[str] | None:
    """What the caller would have changed; `None` for whatever is there. A weak tag never matches."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return {tag[1:-1] for tag in tags if tag == f'"{tag[1:-1]}"'}


IfMatch = Annotated[Collection[str] | None, Depends(get_versions)]
