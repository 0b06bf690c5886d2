"""What people may write into a field, wherever it comes from: a request, a file, the command line."""

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, StringConstraints
from typing_extensions import TypeAliasType

from src.core.addresses import normalize_email
from src.core.passwords import PASSWORD_MAX_LENGTH

# Our own words for pydantic's errors: its sentences quote parts of the input, which may be a password.
_REASONS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} characters",
    "string_unicode": "contains characters that UTF-8 cannot encode",
    "uuid_parsing": "is not a UUID",
    "json_invalid": "is not valid JSON",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "value_error": "{error}",  # raised by our own validators, whose texts repeat nothing
}

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SEPARATORS = frozenset("\u2028\u2029")


def reason_of(error: Mapping[str, Any]) -> str:
    """Why pydantic refuses a value, without a piece of it: one of the `errors()` of its `ValidationError`."""
    return _REASONS.get(error["type"], "is not valid").format_map(error.get("ctx", {}))


def printable(text: str) -> str:
    # PostgreSQL refuses NUL; escape sequences would act on an administrator's terminal.
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


def presentable(name: str) -> str:
    # Others read a name on pages and in emails: it must not reorder or break the text around it, nor become a link.
    if not _BIDI_CONTROLS.isdisjoint(name):
        raise ValueError("must not contain characters that change the direction of text")
    if not _SEPARATORS.isdisjoint(name):
        raise ValueError("must not contain line or paragraph separators")
    if "://" in name:
        raise ValueError("must not contain a web address")
    return name


def encodable(secret: SecretStr) -> SecretStr:
    # JSON can spell half of a surrogate pair, which no encoding can write. For `str` pydantic looks by itself.
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("contains characters that UTF-8 cannot encode") from None
    return secret


Email = Annotated[
    str,
    Field(max_length=320, examples=["ana@example.com"], json_schema_extra={"format": "email"}),
    AfterValidator(normalize_email),
]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(printable)]
Name = Annotated[Line, AfterValidator(presentable), Field(examples=["Ana"])]  # older names in the database may be freer
# Any text that UTF-8 can hold, spaces and control characters included: it is never shown, only hashed.
Password = Annotated[
    SecretStr, AfterValidator(encodable), Field(max_length=PASSWORD_MAX_LENGTH, examples=["correct-horse-battery"])
]
# One that may become a user's. It has a name in the API document, which sets its shortest length by the settings.
NewPassword = TypeAliasType("NewPassword", Password)
SearchText = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]
