"""The keys, and what is encrypted with them."""

from collections.abc import Iterator, Sequence

from src.cli.doctor.findings import Finding, check_modes, open_session, try_to_write
from src.core.keys import Key, NoKeysError, find_missing, load_keys, signer, signing_keys
from src.core.settings import Settings
from src.db.base import utc_now
from src.db.repositories import SecondFactorRepository


async def check_keys(settings: Settings) -> Sequence[Finding]:
    try:
        keys = load_keys(settings.jwt_keys_dir)
    except (NoKeysError, OSError, ValueError) as error:
        advice = "Repair the file, or take it away and make new keys with `python -m src keys rotate`."
        return [Finding("keys", "problem", f"They cannot be read: {error}", advice, "the keys cannot be read")]
    every_key = [key for kind in keys for key in kind]
    if missing := find_missing(keys, settings.jwt_algorithm):
        return [_missing_keys(missing, settings), *_check_key_files(every_key, settings)]
    return [
        Finding("keys", "ok", _summary("Access tokens are signed", signing_keys(keys, settings.jwt_algorithm))),
        Finding("keys", "ok", _summary("Refresh tokens are signed", keys.refresh)),
        Finding("keys", "ok", _summary("Second factors are encrypted", keys.encryption)),
        Finding("keys", "ok", _sharing_summary(every_key, settings)),
        *_check_key_files(every_key, settings),
    ]


def _missing_keys(missing: str, settings: Settings) -> Finding:
    folder = settings.jwt_keys_dir
    text = f"There is {missing} in {folder}."
    if settings.is_production:
        return Finding("keys", "problem", text, "Make them with `python -m src keys rotate`.")
    try:
        try_to_write(folder / "new.pem")
    except OSError as error:
        return Finding("keys", "problem", text, f"The folder must be writable ({error.strerror}): see JWT_KEYS_DIR.")
    return Finding("keys", "warning", text, "The first start makes some for development.")


def _summary(what: str, keys: Sequence[Key]) -> str:
    """Which key signs or encrypts, how old it is, and which will follow."""
    now, current = utc_now(), signer(keys)
    waiting = [f"; {key.id} from {key.signs_from:%Y-%m-%d %H:%M:%S} UTC on" for key in keys if key.signs_from > now]
    follow = "".join(waiting) if current.signs_from <= now else ""
    return f"{what} by {current.id}, {_age(current)}{follow}."


def _sharing_summary(keys: Sequence[Key], settings: Settings) -> str:
    ids = ", ".join(key.id for key in keys)
    return f"Replicas share them by one folder, {settings.jwt_keys_dir}: doctor must show these on each: {ids}."


def _age(key: Key) -> str:
    if not key.created_at.timestamp():
        return "whose name does not tell its age"
    days = max(0, (utc_now() - key.created_at).days)
    return f"{days} {'day' if days == 1 else 'days'} old"


def _check_key_files(keys: Sequence[Key], settings: Settings) -> Iterator[Finding]:
    for key in keys:
        if settings.is_production and key.is_generated:
            advice = "Make keys with `python -m src keys rotate` in a folder of their own, and set JWT_KEYS_DIR to it."
            yield Finding("keys", "problem", f"{key.path} was made up for development.", advice)
    yield from check_modes("keys", [key.path for key in keys])


async def check_secrets(settings: Settings) -> Sequence[Finding]:
    """What is encrypted in the database, and whether its keys are here."""
    keys = {key.id: key for key in load_keys(settings.jwt_keys_dir).encryption}
    async with open_session(settings) as session:
        counts = await SecondFactorRepository(session).count_by_key()
    lost = [_lost_key(key_id, count, settings) for key_id, count in counts.items() if key_id not in keys]
    current = signer([*keys.values()]).id if keys else None
    waiting = sum(count for key_id, count in counts.items() if key_id in keys and key_id != current)
    if waiting:
        advice = "Before one of these is retired, run `python -m src keys reencrypt`."
        return [*lost, Finding("secrets", "ok", f"Second factors that other keys have encrypted: {waiting}.", advice)]
    return lost or [Finding("secrets", "ok", "No second factor needs another key than the current one.")]


def _lost_key(key_id: str, count: int, settings: Settings) -> Finding:
    text = f"The encryption key {key_id} is not in {settings.jwt_keys_dir}, and second factors need it: {count}."
    return Finding("secrets", "problem", text, "Put its file back: until then their owners cannot log in with a code.")
