"""What the database holds of a secret tells nothing without the key, and nothing of another user's."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from src.core.encryption import DecryptionError, Encrypted, Encryption
from src.core.keys import SIGNS_AFTER
from tests.support.factories import DAY
from tests.support.keys import make_ring, rotate_ago

SECRET = "JBSWY3DPEHPK3PXP"
ANA, BEN = uuid4(), uuid4()


@pytest.fixture
def encryption(tmp_path: Path) -> Encryption:
    rotate_ago(tmp_path, DAY)
    return Encryption(make_ring(tmp_path, may_generate=False))


def test_what_was_encrypted_is_given_back(encryption: Encryption) -> None:
    encrypted = encryption.encrypt(SECRET, user_id=ANA)

    assert encryption.decrypt(encrypted, user_id=ANA) == SECRET
    assert encrypted.key_id == encryption.keys.encrypter().id
    assert SECRET.encode() not in encrypted.data


def test_the_same_secret_is_never_encrypted_to_the_same_bytes(encryption: Encryption) -> None:
    one, other = (encryption.encrypt(SECRET, user_id=ANA).data for _ in range(2))

    assert one[:12] != other[:12]  # a nonce that is used twice gives GCM's key away
    assert one[12:] != other[12:]


def assert_refused(encryption: Encryption, encrypted: Encrypted, user_id: UUID) -> None:
    with pytest.raises(
        DecryptionError, match=f"the key {encrypted.key_id} has encrypted was changed, or moved"
    ) as told:
        encryption.decrypt(encrypted, user_id=user_id)
    assert SECRET not in str(told.value)


def test_in_the_row_of_another_user_it_is_refused(encryption: Encryption) -> None:
    assert_refused(encryption, encryption.encrypt(SECRET, user_id=ANA), BEN)


@pytest.mark.parametrize("position", [0, 12, -1], ids=["nonce", "text", "tag"])
def test_a_changed_byte_is_refused(encryption: Encryption, position: int) -> None:
    encrypted = encryption.encrypt(SECRET, user_id=ANA)
    data = bytearray(encrypted.data)
    data[position] ^= 1

    assert_refused(encryption, Encrypted(encrypted.key_id, bytes(data)), ANA)


@pytest.mark.parametrize("length", [0, 5, 12, 20])
def test_what_was_cut_off_is_refused(encryption: Encryption, length: int) -> None:
    encrypted = encryption.encrypt(SECRET, user_id=ANA)

    assert_refused(encryption, Encrypted(encrypted.key_id, encrypted.data[:length]), ANA)


def test_a_key_that_is_not_here_is_named(encryption: Encryption, tmp_path: Path) -> None:
    rotate_ago(tmp_path / "elsewhere", DAY)
    encrypted = Encryption(make_ring(tmp_path / "elsewhere")).encrypt(SECRET, user_id=ANA)

    with pytest.raises(DecryptionError, match=f"The encryption key {encrypted.key_id} is not in JWT_KEYS_DIR"):
        encryption.decrypt(encrypted, user_id=ANA)


def test_old_keys_go_on_decrypting_and_the_new_one_encrypts(encryption: Encryption, tmp_path: Path) -> None:
    before = encryption.encrypt(SECRET, user_id=ANA)

    rotate_ago(tmp_path, SIGNS_AFTER)
    after = encryption.encrypt(SECRET, user_id=ANA)

    assert after.key_id != before.key_id
    assert [encryption.decrypt(each, user_id=ANA) for each in (before, after)] == [SECRET, SECRET]


def test_what_a_key_that_still_waits_has_encrypted_is_decrypted(encryption: Encryption, tmp_path: Path) -> None:
    """Another replica's clock may be ahead."""
    ahead = tmp_path / "ahead"
    rotate_ago(ahead, SIGNS_AFTER / 2)
    encrypted = Encryption(make_ring(ahead)).encrypt(SECRET, user_id=ANA)
    for path in ahead.iterdir():
        path.rename(tmp_path / path.name)

    assert encryption.keys.encrypter().id != encrypted.key_id
    assert encryption.decrypt(encrypted, user_id=ANA) == SECRET
