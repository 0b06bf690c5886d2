"""Keys: shared by all who read their folder, and never used before others know of them."""

import json
import re
import stat
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from joserfc.jwk import import_key

from src.core.keys import (
    JWKS_MAX_AGE,
    RELOAD_SECONDS,
    SIGNS_AFTER,
    Algorithm,
    KeyRing,
    NoKeysError,
    load_keys,
    needed_until,
    rotate,
)
from tests.support.factories import DAY
from tests.support.keys import make_ring, rotate_ago
from tests.support.processes import ROOT

ALGORITHMS = get_args(Algorithm)


def published(ring: KeyRing) -> list[str]:
    return [key["kid"] for key in ring.jwks()["keys"]]


def all_ids(ring: KeyRing) -> tuple[str, ...]:
    return tuple(key.id for key in (*ring.access_keys, *ring.refresh_keys, *ring.encryption_keys))


def ids_in(folder: Path) -> tuple[str, ...]:
    return tuple(key.id for keys in load_keys(folder) for key in keys)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestGeneration:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_the_setting_decides_the_algorithm(self, tmp_path: Path, algorithm: Algorithm) -> None:
        ring = make_ring(tmp_path / "keys", algorithm)

        assert ring.access_signer().algorithm == algorithm
        assert [key["alg"] for key in ring.jwks()["keys"]] == [algorithm]

    def test_a_restart_has_the_same_keys(self, tmp_path: Path) -> None:
        before = all_ids(make_ring(tmp_path / "keys"))

        assert all_ids(make_ring(tmp_path / "keys")) == before

    def test_only_the_owner_of_the_process_can_read_them(self, tmp_path: Path) -> None:
        make_ring(tmp_path / "keys").jwks()

        assert mode(tmp_path / "keys") == 0o700
        assert [mode(path) for path in (tmp_path / "keys").iterdir()] == [0o600, 0o600, 0o600]

    def test_threads_that_start_together_agree_on_one_set(self, tmp_path: Path) -> None:
        for attempt in range(10):
            folder, together = tmp_path / str(attempt), Barrier(8)

            def start(folder: Path = folder, together: Barrier = together) -> tuple[str, ...]:
                together.wait()
                return all_ids(make_ring(folder))

            with ThreadPoolExecutor(8) as threads:
                seen = {future.result() for future in [threads.submit(start) for _ in range(8)]}

            assert len(seen) == 1
            assert len(list(folder.iterdir())) == 3

    @pytest.mark.slow
    def test_processes_that_start_together_agree_on_one_set(self, tmp_path: Path) -> None:
        folder = tmp_path / "keys"
        code = (
            "import sys; from pathlib import Path; from src.core.keys import KeyRing\n"
            "print(flush=True); sys.stdin.readline()\n"
            f"ring = KeyRing(Path({str(folder)!r}), 'ES256', may_generate=True)\n"
            "print([key.id for key in (*ring.access_keys, *ring.refresh_keys, *ring.encryption_keys)])"
        )
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout
            worker.stdout.readline()

        for worker in workers:
            assert worker.stdin
            worker.stdin.write("\n")
            worker.stdin.flush()
        answers = {worker.communicate()[0] for worker in workers}

        assert len(answers) == 1
        assert len(list(folder.iterdir())) == 3

    def test_what_was_generated_can_be_told_from_what_people_made(self, tmp_path: Path) -> None:
        make_ring(tmp_path / "generated").jwks()
        rotate(tmp_path / "made", "ES256")

        generated, made = (load_keys(tmp_path / name) for name in ("generated", "made"))
        assert [key.is_generated for keys in generated for key in keys] == [True, True, True]
        assert [key.is_generated for keys in made for key in keys] == [False, False, False]

    def test_without_leave_to_generate_the_refusal_names_the_command_and_the_setting(self, tmp_path: Path) -> None:
        with pytest.raises(NoKeysError, match=r"JWT_KEYS_DIR.*python -m src keys rotate"):
            make_ring(tmp_path, may_generate=False).jwks()

        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("kept", "named"),
        [
            ("*.pem", "There is no refresh secret (*.secret), no encryption key (*.key) in "),
            ("*.secret", "There is no ES256 key (*.pem), no encryption key (*.key) in "),
            ("*.key", "There is no ES256 key (*.pem), no refresh secret (*.secret) in "),
        ],
    )
    def test_the_refusal_names_what_is_missing(self, tmp_path: Path, kept: str, named: str) -> None:
        for key in rotate(tmp_path, "ES256"):
            if not key.path.match(kept):
                key.path.unlink()

        with pytest.raises(NoKeysError, match=f"^{re.escape(named)}"):
            make_ring(tmp_path, may_generate=False).encrypter()

    def test_a_key_of_another_algorithm_is_none_to_sign_with(self, tmp_path: Path) -> None:
        rotate(tmp_path, "ES256")

        with pytest.raises(NoKeysError, match="EdDSA"):
            make_ring(tmp_path, "EdDSA", may_generate=False).access_signer()

    @pytest.mark.parametrize("missing", [1, 2])
    def test_where_only_one_kind_is_missing_only_that_is_made(self, tmp_path: Path, missing: int) -> None:
        made = rotate(tmp_path, "ES256")
        made[missing].path.unlink()

        make_ring(tmp_path).jwks()

        [keys] = zip(*load_keys(tmp_path), strict=True)
        assert [key.is_generated for key in keys] == [key is made[missing] for key in made]

    def test_a_development_that_starts_with_another_algorithm_makes_its_own_key(self, tmp_path: Path) -> None:
        access, refresh, _ = rotate(tmp_path, "ES256")

        ring = make_ring(tmp_path, "EdDSA")

        assert ring.access_signer().algorithm == "EdDSA"
        assert access.id in published(ring)
        assert [key.id for key in ring.refresh_keys] == [refresh.id]

    def test_keys_that_people_made_are_not_added_to(self, tmp_path: Path) -> None:
        made = rotate(tmp_path, "ES256")

        assert all_ids(make_ring(tmp_path)) == tuple(key.id for key in made)


class TestRotation:
    def test_the_first_key_signs_at_once(self, tmp_path: Path) -> None:
        access, refresh, encryption = rotate(tmp_path, "ES256")
        ring = make_ring(tmp_path)

        used = ring.access_signer(), ring.refresh_signer(), ring.encrypter()
        assert [key.id for key in used] == [access.id, refresh.id, encryption.id]

    def test_a_new_key_is_published_at_once_but_does_not_sign(self, tmp_path: Path) -> None:
        old, old_secret = rotate_ago(tmp_path, DAY)
        ring = make_ring(tmp_path)
        ring.jwks()

        new, new_secret, _ = rotate(tmp_path, "ES256")

        assert published(ring) == [old, new.id]
        assert [key.id for key in ring.refresh_keys] == [old_secret, new_secret.id]
        assert ring.access_signer().id == old
        assert ring.refresh_signer().id == old_secret

    @pytest.mark.parametrize(
        ("ago", "signs"),
        [(JWKS_MAX_AGE, False), (SIGNS_AFTER, True), (DAY, True)],
    )
    def test_it_signs_when_no_cached_jwks_can_be_without_it(self, tmp_path: Path, ago: timedelta, signs: bool) -> None:  # noqa: FBT001
        old, old_secret = rotate_ago(tmp_path, 2 * DAY)
        new, new_secret = rotate_ago(tmp_path, ago)
        ring = make_ring(tmp_path)

        assert ring.access_signer().id == (new if signs else old)
        assert ring.refresh_signer().id == (new_secret if signs else old_secret)

    @pytest.mark.parametrize(("ago", "encrypts"), [(JWKS_MAX_AGE, False), (SIGNS_AFTER, True)])
    def test_it_encrypts_when_every_replica_has_read_it(self, tmp_path: Path, ago: timedelta, encrypts: bool) -> None:  # noqa: FBT001
        rotate_ago(tmp_path, 2 * DAY)
        rotate_ago(tmp_path, ago)
        ring = make_ring(tmp_path)

        old, new = ring.encryption_keys

        assert ring.encrypter() == (new if encrypts else old)

    def test_a_jwks_that_was_cached_by_a_worker_who_was_late_to_look_is_waited_for_too(self) -> None:
        assert timedelta(seconds=RELOAD_SECONDS) + JWKS_MAX_AGE < SIGNS_AFTER

    def test_of_several_new_keys_the_newest_signs(self, tmp_path: Path) -> None:
        for days in (3, 1, 2):
            rotate_ago(tmp_path, days * DAY)
        newest, newest_secret = rotate_ago(tmp_path, timedelta(hours=1))
        ring = make_ring(tmp_path)

        assert (ring.access_signer().id, ring.refresh_signer().id) == (newest, newest_secret)

    def test_a_key_that_was_generated_gives_way_to_one_that_was_made(self, tmp_path: Path) -> None:
        ring = make_ring(tmp_path)
        generated = ring.access_signer().id

        made, _ = rotate_ago(tmp_path, SIGNS_AFTER)

        assert ring.access_signer().id == made
        assert published(ring) == [generated, made]

    def test_a_key_whose_name_has_no_date_is_the_oldest(self, tmp_path: Path) -> None:
        access, _, _ = rotate(tmp_path, "ES256")
        access.path.rename(tmp_path / "mounted.pem")
        newer, _ = rotate_ago(tmp_path, DAY)

        assert published(make_ring(tmp_path)) == [access.id, newer]

    def test_keys_of_every_algorithm_verify_but_one_signs(self, tmp_path: Path) -> None:
        ids = [rotate_ago(tmp_path, DAY, algorithm)[0] for algorithm in ALGORITHMS]
        ring = make_ring(tmp_path, "ES256")

        assert sorted(published(ring)) == sorted(ids)
        assert ring.access_signer().algorithm == "ES256"

    def test_a_running_ring_forgets_a_key_whose_file_is_gone(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, 2 * DAY)
        old = [*tmp_path.iterdir()]
        rotate_ago(tmp_path, DAY)
        ring = make_ring(tmp_path)
        ring.jwks()

        for path in old:
            path.unlink()

        assert len(all_ids(ring)) == 3
        assert all_ids(ring) == ids_in(tmp_path)

    def test_between_two_looks_the_disk_is_left_alone(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path, "ES256", may_generate=True, reload_seconds=3600)
        before = published(ring)

        rotate(tmp_path, "ES256")

        assert published(ring) == before

    def test_the_last_key_that_goes_is_kept_until_there_is_another_to_sign_with(self, tmp_path: Path) -> None:
        last = rotate(tmp_path, "ES256")
        ring = make_ring(tmp_path, may_generate=False)
        ring.jwks()

        for key in last:
            key.path.unlink()
        kept = all_ids(ring)
        following = rotate(tmp_path, "ES256")

        assert kept == tuple(key.id for key in last)
        assert all_ids(ring) == tuple(key.id for key in following)

    def test_the_last_key_of_a_kind_that_goes_is_kept_as_well(self, tmp_path: Path) -> None:
        *_, encryption = rotate(tmp_path, "ES256")
        ring = make_ring(tmp_path, may_generate=False)
        ring.jwks()

        encryption.path.unlink()

        assert ring.encrypter() == encryption

    def test_a_retired_key_is_forgotten_by_the_first_look_that_finds_the_folder(self, tmp_path: Path) -> None:
        folder, away = tmp_path / "keys", tmp_path / "away"
        rotate_ago(folder, 2 * DAY)
        rotate_ago(folder, DAY)
        ring = make_ring(folder, may_generate=False)
        retired = ring.access_keys[0], ring.refresh_keys[0], ring.encryption_keys[0]

        folder.rename(away)
        ring.jwks()
        away.rename(folder)
        for key in retired:
            key.path.unlink()

        assert len(all_ids(ring)) == 3
        assert all_ids(ring) == ids_in(folder)


class TestNeededUntil:
    def test_a_key_that_signs_is_needed(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, 2 * DAY)
        rotate_ago(tmp_path, DAY)
        access = load_keys(tmp_path).access

        assert needed_until(access[1], access, timedelta(minutes=15)) is None

    def test_the_one_before_is_until_its_last_token_has_expired(self, tmp_path: Path) -> None:
        for days in (3, 2, 1):
            rotate_ago(tmp_path, days * DAY)
        access = load_keys(tmp_path).access

        assert needed_until(access[0], access, timedelta(minutes=15)) == access[1].signs_from + timedelta(minutes=15)

    def test_nobody_knows_when_a_key_of_another_algorithm_signed(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, DAY, "EdDSA")
        rotate_ago(tmp_path, DAY, "ES256")
        access = load_keys(tmp_path).access
        [other] = [key for key in access if key.algorithm == "EdDSA"]

        assert needed_until(other, [key for key in access if key != other], timedelta(minutes=15)) is None


class TestPublicKeys:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_the_id_is_the_thumbprint_of_rfc_7638(self, tmp_path: Path, algorithm: Algorithm) -> None:
        [jwk] = make_ring(tmp_path, algorithm).jwks()["keys"]

        theirs = import_key({name: value for name, value in jwk.items() if name != "kid"})

        assert jwk["kid"] == theirs.thumbprint()

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_the_jwks_holds_public_halves_alone(self, tmp_path: Path, algorithm: Algorithm) -> None:
        ring = make_ring(tmp_path, algorithm)
        [secret] = ring.refresh_keys
        [jwk] = ring.jwks()["keys"]

        assert jwk["use"] == "sig"
        assert jwk["kty"] != "oct"
        assert jwk.keys() <= {"kty", "crv", "x", "y", "n", "e", "kid", "use", "alg"}
        assert secret.id not in json.dumps(ring.jwks())

    def test_no_representation_holds_a_secret(self, tmp_path: Path) -> None:
        ring = make_ring(tmp_path)
        [secret], [private], [encryption] = ring.refresh_keys, ring.access_keys, ring.encryption_keys

        text = repr((ring, secret, private, encryption))

        assert isinstance(secret.signing, bytes)
        assert secret.signing.decode() not in text
        assert repr(encryption.signing) not in text
        assert "PrivateKey" not in text

    def test_the_id_of_a_secret_tells_nothing_of_it(self, tmp_path: Path) -> None:
        secret = make_ring(tmp_path).refresh_signer()

        assert isinstance(secret.signing, bytes)
        assert secret.id.encode() not in secret.signing


def to_pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return pem


class TestFilesThatAreNoKeys:
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: b"", id="empty"),
            pytest.param(lambda: b"-----BEGIN PRIVATE KEY-----\nMIGH", id="cut off"),
            pytest.param(lambda: to_pem(ec.generate_private_key(ec.SECP384R1())), id="another curve"),
            pytest.param(lambda: to_pem(rsa.generate_private_key(65537, 1024)), id="RSA of too few bits"),  # noqa: S505
            pytest.param(lambda: to_pem(x25519.X25519PrivateKey.generate()), id="a key that cannot sign"),
            pytest.param(
                lambda: to_pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"passphrase")),
                id="encrypted",
            ),
        ],
    )
    def test_the_refusal_names_the_file(self, tmp_path: Path, make: Callable[[], bytes]) -> None:
        rotate(tmp_path, "ES256")
        (tmp_path / "broken.pem").write_bytes(make())

        with pytest.raises(NoKeysError, match=r"broken\.pem is not a private key"):
            make_ring(tmp_path).jwks()

    def test_a_secret_that_could_be_guessed_is_refused(self, tmp_path: Path) -> None:
        rotate(tmp_path, "ES256")
        (tmp_path / "short.secret").write_bytes(b"x" * 31 + b"\n")

        with pytest.raises(NoKeysError, match=r"short\.secret is too short.*32 bytes") as refused:
            make_ring(tmp_path).jwks()
        assert "xxx" not in str(refused.value)

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(urlsafe_b64encode(b"canary" * 5), id="too short"),
            pytest.param(urlsafe_b64encode(b"canary.." * 4) * 2, id="twice"),
            pytest.param(urlsafe_b64encode(b"canary.." * 4)[:-1], id="cut off"),
            pytest.param(b"canary.." * 4, id="raw bytes"),
            pytest.param(b"Y2FuYXJ5 Li5jYW5hcnkuLmNhbmFyeS4uY2FuYXJ5Li4=", id="broken by a space"),
            pytest.param(b"\xff" * 32, id="not text"),
        ],
    )
    def test_an_encryption_key_that_is_not_32_bytes_is_refused(self, tmp_path: Path, content: bytes) -> None:
        rotate(tmp_path, "ES256")
        (tmp_path / "broken.key").write_bytes(content)

        with pytest.raises(NoKeysError, match=r"broken\.key is not an encryption key: 32 bytes") as refused:
            make_ring(tmp_path).encrypter()
        assert "canary" not in str(refused.value)

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        made = rotate(tmp_path, "ES256")
        (tmp_path / "README").write_text("These are the keys.")

        assert all_ids(make_ring(tmp_path)) == tuple(key.id for key in made)

    def test_a_running_ring_goes_on_while_a_file_is_half_copied(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old, _ = rotate_ago(tmp_path / "keys", 2 * DAY)
        new, _, _ = rotate(tmp_path / "elsewhere", "ES256")
        pem, arriving = new.path.read_bytes(), tmp_path / "keys" / new.path.name
        ring = make_ring(tmp_path / "keys")
        ring.jwks()

        arriving.write_bytes(pem[:80])
        during = published(ring)
        arriving.write_bytes(pem)

        assert during == [old]
        assert arriving.name in caplog.text
        assert published(ring) == [old, new.id]
