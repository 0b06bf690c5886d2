from uuid import uuid4

import pytest
from sqlalchemy.exc import IntegrityError, MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.exceptions import UserEmailTakenError, UserNotFoundError
from src.core.passwords import UNUSABLE_PASSWORD
from src.db.models import UserModel
from src.db.repositories import UserFilter, UserRepository
from tests.support.factories import make_user


class TestUserRepository:
    async def test_get_by_id_raises_when_missing(self, session: AsyncSession) -> None:
        user = make_user()
        users = UserRepository(session)
        await users.add(user)
        await users.delete(user)

        with pytest.raises(UserNotFoundError):
            await users.get_by_id(user.id)

    @pytest.mark.parametrize("column", ["email", "hashed_password"])
    async def test_a_required_column_left_out_is_an_integrity_error(self, session: AsyncSession, column: str) -> None:
        values = {"email": "ana@example.com", "hashed_password": "<bcrypt-hash>"}
        del values[column]
        session.add(UserModel(**values))

        with pytest.raises(IntegrityError):
            await session.flush()

    @pytest.mark.parametrize("column", ["email", "hashed_password"])
    async def test_adding_without_a_required_column_is_no_domain_error(
        self, session: AsyncSession, column: str
    ) -> None:
        with pytest.raises(IntegrityError):
            await UserRepository(session).add(make_user(**{"email": "ana@example.com"} | {column: None}))

    async def test_a_user_built_directly_is_active_and_activated(self, session: AsyncSession) -> None:
        user = await UserRepository(session).add(make_user())

        assert user.is_active
        assert not user.is_admin
        assert user.activated_at is not None
        assert user.last_login_at is None

    async def test_the_same_address_cannot_be_owned_twice(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        await users.add(make_user())

        with pytest.raises(UserEmailTakenError):
            await users.add(make_user("ANA@example.com"))

    async def test_an_address_may_be_pending_many_times(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        await users.add(make_user())

        for _ in range(2):
            await users.add(make_user(activated_at=None, is_active=False))

        assert await users.count({"email": "ana@example.com"}) == 3
        with pytest.raises(MultipleResultsFound):
            await users.get({"email": "ana@example.com"})

    async def test_none_as_activated_at_is_stored_as_null(self, session: AsyncSession) -> None:
        users = UserRepository(session)

        await users.add(make_user(activated_at=None))

        assert await users.exists({"activated_at": None})

    async def test_find_owner_answers_with_the_activated_row_alone(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        await users.add(make_user(activated_at=None))
        assert await users.find_owner("ana@example.com") is None

        owner = await users.add(make_user())

        found = await users.find_owner("Ana@EXAMPLE.com")
        assert found is not None
        assert found.id == owner.id

    async def test_none_as_a_filter_means_is_null(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        await users.add(make_user())

        with pytest.raises(UserNotFoundError):
            await users.get({"email": None})
        assert await users.count({"last_login_at": None}) == 1

    async def test_a_filter_on_an_unknown_column_raises(self, session: AsyncSession) -> None:
        users = UserRepository(session)

        with pytest.raises(ValueError, match="UserModel has no column e_mail"):
            await users.get({"e_mail": "ana@example.com"})

    async def test_list_pages_by_id_in_order_of_age(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        added = [await users.add(make_user(f"u{number}@example.com")) for number in range(3)]

        first = await users.list(limit=2)
        rest = await users.list(limit=2, after=first[-1].id)

        assert [user.id for user in (*first, *rest)] == [user.id for user in added]

    async def test_records_page_by_id_in_either_order_and_hold_no_hash(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        ids = [(await users.add(make_user(f"u{number}@example.com"))).id for number in range(4)]

        oldest = await users.list_records(UserFilter(), order="oldest", limit=2, after=ids[0])
        newest = await users.list_records(UserFilter(), order="newest", limit=2, after=ids[3])

        assert [record.id for record in oldest] == ids[1:3]
        assert [record.id for record in newest] == ids[2:0:-1]
        assert "<bcrypt-hash>" not in str(oldest)
        assert await users.count_records(UserFilter()) == 4

    async def test_the_record_of_nobody_raises(self, session: AsyncSession) -> None:
        with pytest.raises(UserNotFoundError):
            await UserRepository(session).get_record(uuid4())

    async def test_only_an_active_account_counts_as_another_administrator(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        admin = await users.add(make_user(is_admin=True))
        await users.add(make_user("person@example.com"))
        await users.add(make_user("disabled@example.com", is_admin=True, is_active=False))
        await users.add(make_user("pending@example.com", is_admin=True, activated_at=None))
        assert not await users.has_other_admin(admin.id)

        other = await users.add(make_user("other@example.com", is_admin=True))

        assert await users.has_other_admin(admin.id)
        assert await users.has_other_admin(other.id)

    async def test_find_invitation_answers_with_neither_a_sign_up_nor_an_account(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        await users.add(make_user(activated_at=None))
        await users.add(make_user(hashed_password=UNUSABLE_PASSWORD))
        assert await users.find_invitation("ana@example.com") is None

        invited = await users.add(make_user(hashed_password=UNUSABLE_PASSWORD, activated_at=None))

        assert await users.find_invitation("ana@example.com") == invited

    async def test_activating_an_invitation_stores_its_password_and_a_sign_up_keeps_its_own(
        self, session: AsyncSession
    ) -> None:
        users = UserRepository(session)
        invited = await users.add(make_user(hashed_password=UNUSABLE_PASSWORD, is_active=False, activated_at=None))
        signed_up = await users.add(make_user("bob@example.com", is_active=False, activated_at=None))

        assert await users.activate(invited.id, hashed_password="<chosen>")
        assert await users.activate(signed_up.id)

        assert await users.find_hashed_password(invited.id) == "<chosen>"
        assert await users.find_hashed_password(signed_up.id) == "<bcrypt-hash>"
        assert not await users.activate(invited.id, hashed_password="<other>")

    async def test_times_come_back_aware(self, session: AsyncSession) -> None:
        users = UserRepository(session)
        user = await users.add(make_user())
        await session.commit()
        session.expunge_all()

        loaded = await users.get_by_id(user.id)

        assert loaded.created_at == user.created_at
        assert loaded.created_at.tzinfo is not None
