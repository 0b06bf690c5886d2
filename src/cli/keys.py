"""`python -m src keys`: how people handle the keys that sign tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from src.cli.context import with_context_if_ready
from src.cli.output import AsJson, fail, print_json
from src.core.keys import Key, NoKeysError, load_keys, needed_until, rotate, signer
from src.core.settings import Settings, get_settings
from src.db.models import EventKind
from src.services import KeyService

app = typer.Typer(help="The keys that sign tokens.", no_args_is_help=True)

_State = Literal["signs", "waits", "verifies"]
_NOW: dict[_State, str] = {"signs": "signs now", "verifies": "verifies"}


@app.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """Show every key: what it signs, whether it does so now, and from when."""
    lines = [_line(key, group) for group in _key_groups(get_settings()) for key in group.keys]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        state = f"signs from {line.signs_from:%Y-%m-%d %H:%M:%S} UTC" if line.signs_from else _NOW[line.state]
        typer.echo(f"{line.kind:8} {line.id:44} {line.algorithm:6} {state:35} {line.path}")


@app.command("rotate")
def rotate_keys(*, as_json: AsJson = False) -> None:
    """Make a new access key and a new refresh secret.

    They are published at once and sign a few minutes later. The old ones go on verifying until they are retired.
    """
    settings = get_settings()
    try:
        access, refresh, encryption = rotate(settings.jwt_keys_dir, settings.jwt_algorithm)
    except OSError as error:
        fail(f"The new keys cannot be written: {error}")
    _record(EventKind.KEY_ROTATION, access.id, refresh.id, encryption.id)
    list_keys(as_json=as_json)


# An id may begin with a dash: it is no option then.
@app.command("retire", context_settings={"ignore_unknown_options": True})
def retire_key(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Retire it even if that ends live tokens, because it has leaked.")
    ] = False,
) -> None:
    """Delete a key once no live token needs it."""
    settings = get_settings()
    for group in _key_groups(settings):
        for key in group.keys:
            if key.id == key_id:
                if not force:
                    _refuse_while_needed(key, group)
                key.path.unlink()
                typer.echo(f"Retired {key.id}: {_effect_on_workers(settings)}.")
                _record(EventKind.KEY_RETIREMENT, key.id)
                return
    fail(f"There is no key {key_id} in {settings.jwt_keys_dir}: see `python -m src keys list`.")


def _effect_on_workers(settings: Settings) -> str:
    if all(group.signing for group in _key_groups(settings)):
        return "running workers forget it within seconds"
    return "running workers keep it until there is another to sign with; run `python -m src keys rotate`"


def _record(kind: Literal[EventKind.KEY_ROTATION, EventKind.KEY_RETIREMENT], *key_ids: str) -> None:
    """Keys are made before there is a database, and retired in a hurry: neither waits for the audit trail."""
    if not with_context_if_ready(lambda context: KeyService(context).record(kind, *key_ids)):
        typer.echo("This is not in the audit trail: the database does not answer, or is not migrated.", err=True)


@dataclass(frozen=True, slots=True)
class _KeyGroup:
    kind: str
    keys: Sequence[Key]
    signing: Sequence[Key]  # those of the algorithm that signs
    token_lifetime: timedelta


def _key_groups(settings: Settings) -> tuple[_KeyGroup, _KeyGroup]:
    try:
        access, refresh, _ = load_keys(settings.jwt_keys_dir)
    except (NoKeysError, OSError) as error:
        fail(str(error))
    signing = [key for key in access if key.algorithm == settings.jwt_algorithm]
    return (
        _KeyGroup("access", access, signing, timedelta(seconds=settings.auth_access_ttl_seconds)),
        # A session that is used gets a new token, so an old secret is needed no longer than a session may lie idle.
        _KeyGroup("refresh", refresh, refresh, timedelta(seconds=settings.auth_session_idle_seconds)),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """What is shown of a key: nothing that signs."""

    kind: str
    id: str
    algorithm: str
    state: _State
    signs_from: datetime | None  # of those that wait for it
    path: Path


def _line(key: Key, group: _KeyGroup) -> _Line:
    state = _state(key, group)
    signs_from = key.signs_from if state == "waits" else None
    return _Line(group.kind, key.id, key.algorithm, state, signs_from, key.path)


def _state(key: Key, group: _KeyGroup) -> _State:
    if key not in group.signing:
        return "verifies"
    if key == signer(group.signing):
        return "signs"
    return "waits" if key.signs_from > datetime.now(UTC) else "verifies"


def _refuse_while_needed(key: Key, group: _KeyGroup) -> None:
    until = needed_until(key, group.signing, group.token_lifetime)
    if until is None:
        fail("It signs, or may have signed until a moment ago: rotate first. --force if it has leaked.")
    if until > datetime.now(UTC):
        fail(f"Tokens that it signed live until {until:%Y-%m-%d %H:%M:%S} UTC: wait. --force if it has leaked.")
