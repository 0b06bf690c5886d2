"""What people type after a command, by the same rules as what they send to the API."""

from collections.abc import Callable

import typer
from pydantic import TypeAdapter, ValidationError

from src.core.fields import reason_of


def read_as(kind: TypeAdapter[str]) -> Callable[[str], str]:
    """The `parser` of an argument or option of this kind of text. What it refuses is a usage error."""

    def parse(text: str) -> str:
        try:
            return kind.validate_python(text)
        except ValidationError as error:
            raise typer.BadParameter("; ".join(reason_of(each) for each in error.errors())) from None

    return parse
