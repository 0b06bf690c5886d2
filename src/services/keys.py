"""What is done with keys. They are files, and come and go without a database: this records it, and encrypts anew what
an older key has encrypted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from src.core.callers import Operator
from src.core.encryption import DecryptionError, Encrypted
from src.db.models import EventKind, SecondFactorModel
from src.services.context import Service

BATCH = 500  # takes some fifty milliseconds, in which codes of its owners wait


@dataclass(slots=True)
class Reencrypted:
    """How many secrets were encrypted anew, and how many were left, by the key that could not decrypt them."""

    reencrypted: int = 0
    left: Counter[str] = field(default_factory=Counter)


class KeyService(Service):
    async def record(self, kind: Literal[EventKind.KEY_ROTATION, EventKind.KEY_RETIREMENT], *key_ids: str) -> None:
        """Record what the operator has done with these keys. Their ids show nothing of them."""
        event = self.context.audit.new_event(kind, by=Operator())
        event.changes = " ".join(key_ids)
        await self.uow.begin()
        await self.context.commit(event)

    async def reencrypt(self) -> Reencrypted:
        """Encrypt with the current key what others have encrypted. What cannot be decrypted is left as it is.

        Each batch is a transaction of its own, so one that was interrupted is ended by repeating it. It leaves no
        event: nobody's secret changes, and the retirement of the older key leaves one.
        """
        key_id, counts, last = self.context.encryption.keys.encrypter().id, Reencrypted(), None
        while True:
            await self.uow.begin()
            factors = await self.uow.second_factors.lock_of_other_keys(key_id, after=last, limit=BATCH)
            await self.uow.second_factors.replace_secrets(self._reencrypt(factors, counts))
            await self.uow.commit()
            if len(factors) < BATCH:
                return counts
            last = factors[-1].id

    def _reencrypt(self, factors: Sequence[SecondFactorModel], counts: Reencrypted) -> Mapping[UUID, Encrypted]:
        encryption, secrets = self.context.encryption, dict[UUID, Encrypted]()
        for factor in factors:
            encrypted = Encrypted(factor.key_id, factor.encrypted_secret)
            try:
                secret = encryption.decrypt(encrypted, user_id=factor.user_id)
            except DecryptionError:
                counts.left[factor.key_id] += 1
                continue
            secrets[factor.id] = encryption.encrypt(secret, user_id=factor.user_id)
        counts.reencrypted += len(secrets)
        return secrets
