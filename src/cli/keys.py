"""`python -m src keys`: how people handle the keys that sign tokens, and that encrypt secrets in the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from src.cli.context import with_context, with_context_if_ready
from src.cli.output import AsJson, fail, print_json
from src.core.keys import Key, NoKeysError, load_keys, needed_until, rotate, signer, signing_keys
from src.core.settings import Settings, get_settings
from src.db.models import EventKind
from src.services import Context, KeyService

app = typer.Typer(help="The keys that sign tokens and encrypt secrets.", no_args_is_help=True)

_Kind = Literal["access", "refresh", "encryption"]
_Use = Literal["signs", "encrypts"]
_State = Literal[_Use, "waits", "verifies", "decrypts"]

# What began to be encrypted while it was the current key is stored by then, also where clocks differ.
_ENCRYPTING_ENDS_AFTER = timedelta(minutes=1)
_LOSS = "--force takes the second factors that it has encrypted from their owners."


@app.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """Show every key: what it signs or encrypts, whether it does so now, and from when."""
    lines = [_line(key, group) for group in _key_groups(get_settings()) for key in group.keys]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        typer.echo(f"{line.kind:10} {line.id:44} {line.algorithm:7} {_show_state(line):35} {line.path}")


@app.command("rotate")
def rotate_keys(*, as_json: AsJson = False) -> None:
    """Make a new access key, a new refresh secret and a new encryption key.

    They are published at once and used a few minutes later. The old ones go on verifying, and decrypting, until they
    are retired.
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
        bool, typer.Option("--force", help="Retire it even if that ends live tokens, or loses what it has encrypted.")
    ] = False,
) -> None:
    """Delete a key once no live token, and nothing in the database, needs it."""
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


@app.command("reencrypt")
def reencrypt(*, as_json: AsJson = False) -> None:
    """Encrypt with the current key what older keys have encrypted, so that these can be retired.

    Repeating it changes nothing, and ends one that was interrupted.
    """
    settings = get_settings()
    *_, group = _key_groups(settings)
    if not group.keys:
        fail(f"There is no encryption key in {settings.jwt_keys_dir}: make keys with `python -m src keys rotate`.")
    counts = with_context(lambda context: KeyService(context).reencrypt())
    if as_json:
        print_json(counts)
    else:
        typer.echo(f"Encrypted anew: {counts.reencrypted}.")
    for line in (_line(key, group) for key in group.keys):
        if line.signs_from:
            typer.echo(f"{line.id} {_show_state(line)}: repeat this then.", err=True)
    for key_id, count in counts.left.items():
        typer.echo(f"Left as they are: {count} that {key_id} has encrypted, {_why_left(key_id, group)}.", err=True)
    if counts.left:
        raise typer.Exit(1)


def _why_left(key_id: str, group: "_KeyGroup") -> str:
    if key_id in [key.id for key in group.keys]:
        return "since they were changed, or moved"
    return "which is not here: put its file back"


def _effect_on_workers(settings: Settings) -> str:
    if all(group.current for group in _key_groups(settings)):
        return "running workers forget it within seconds"
    return "running workers keep it until there is another in its place; run `python -m src keys rotate`"


def _record(kind: Literal[EventKind.KEY_ROTATION, EventKind.KEY_RETIREMENT], *key_ids: str) -> None:
    """Keys are made before there is a database, and retired in a hurry: neither waits for the audit trail."""

    async def record(context: Context) -> bool:
        await KeyService(context).record(kind, *key_ids)
        return True

    if not with_context_if_ready(record):
        typer.echo("This is not in the audit trail: the database does not answer, or is not migrated.", err=True)


@dataclass(frozen=True, slots=True)
class _KeyGroup:
    kind: _Kind
    keys: Sequence[Key]
    current: Sequence[Key]  # those of which the newest signs or encrypts
    needed_for: timedelta  # after it has signed or encrypted for the last time
    use: _Use = "signs"


def _key_groups(settings: Settings) -> tuple[_KeyGroup, _KeyGroup, _KeyGroup]:
    try:
        keys = load_keys(settings.jwt_keys_dir)
    except (NoKeysError, OSError) as error:
        fail(str(error))
    access_lifetime = timedelta(seconds=settings.auth_access_ttl_seconds)
    # A session that is used gets a new token, so an old secret is needed no longer than a session may lie idle.
    refresh_lifetime = timedelta(seconds=settings.auth_session_idle_seconds)
    return (
        _KeyGroup("access", keys.access, signing_keys(keys, settings.jwt_algorithm), access_lifetime),
        _KeyGroup("refresh", keys.refresh, keys.refresh, refresh_lifetime),
        _KeyGroup("encryption", keys.encryption, keys.encryption, _ENCRYPTING_ENDS_AFTER, use="encrypts"),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """What is shown of a key: nothing that signs or decrypts."""

    kind: _Kind
    id: str
    algorithm: str
    state: _State
    signs_from: datetime | None  # or encrypts, of those that wait for it
    path: Path


def _line(key: Key, group: _KeyGroup) -> _Line:
    state = _state(key, group)
    signs_from = key.signs_from if state == "waits" else None
    return _Line(group.kind, key.id, key.algorithm, state, signs_from, key.path)


def _state(key: Key, group: _KeyGroup) -> _State:
    if key in group.current and key == signer(group.current):
        return group.use
    if key in group.current and key.signs_from > datetime.now(UTC):
        return "waits"
    return "decrypts" if group.use == "encrypts" else "verifies"


def _show_state(line: _Line) -> str:
    match line.state:
        case "waits":
            use = "encrypts" if line.kind == "encryption" else "signs"
            return f"{use} from {line.signs_from:%Y-%m-%d %H:%M:%S} UTC"
        case "signs" | "encrypts":
            return f"{line.state} now"
    return line.state


def _refuse_while_needed(key: Key, group: _KeyGroup) -> None:
    until = needed_until(key, group.current, group.needed_for)
    if group.use == "encrypts":
        _refuse_while_decrypting(key, until)
        return
    if until is None:
        fail("It signs, or may have signed until a moment ago: rotate first. --force if it has leaked.")
    if until > datetime.now(UTC):
        fail(f"Tokens that it signed live until {until:%Y-%m-%d %H:%M:%S} UTC: wait. --force if it has leaked.")


def _refuse_while_decrypting(key: Key, until: datetime | None) -> None:
    if until is None:
        fail(f"It encrypts, or will: rotate first. {_LOSS}")
    if until > datetime.now(UTC):
        fail(f"It may encrypt until {until:%Y-%m-%d %H:%M:%S} UTC: wait. {_LOSS}")
    count = with_context_if_ready(lambda context: context.uow.second_factors.count({"key_id": key.id}))
    if count is None:
        fail(f"The database cannot tell what needs it: it does not answer, or is not migrated. {_LOSS}")
    if count:
        fail(f"Second factors that it has encrypted: {count}. Run `python -m src keys reencrypt` first. {_LOSS}")
