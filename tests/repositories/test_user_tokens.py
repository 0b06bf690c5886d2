from sqlalchemy.ext.asyncio import AsyncSession

from src.core.kinds import TokenPurpose
from src.db.base import utc_now
from src.db.repositories import UserRepository, UserTokenRepository
from tests.support.factories import DAY, make_user


async def test_spending_a_token_ends_the_others_of_its_user_and_of_nobody_else(session: AsyncSession) -> None:
    users, tokens = UserRepository(session), UserTokenRepository(session)
    ana, bob = await users.add(make_user()), await users.add(make_user("bob@example.com"))
    first, second = [await tokens.issue(ana.id, TokenPurpose.ACTIVATION, expires_at=utc_now() + DAY) for _ in range(2)]
    of_bob = await tokens.issue(bob.id, TokenPurpose.ACTIVATION, expires_at=utc_now() + DAY)

    assert await tokens.consume(first, TokenPurpose.ACTIVATION)

    assert not await tokens.consume(second, TokenPurpose.ACTIVATION)
    assert await tokens.consume(of_bob, TokenPurpose.ACTIVATION)


async def test_an_expired_token_is_nobodys_and_cannot_be_spent(session: AsyncSession) -> None:
    tokens = UserTokenRepository(session)
    user = await UserRepository(session).add(make_user())
    token = await tokens.issue(user.id, TokenPurpose.ACTIVATION, expires_at=utc_now() - DAY)

    assert await tokens.find_user(token, TokenPurpose.ACTIVATION) is None
    assert not await tokens.consume(token, TokenPurpose.ACTIVATION)


async def test_a_token_is_good_for_its_own_purpose_alone(session: AsyncSession) -> None:
    tokens = UserTokenRepository(session)
    user = await UserRepository(session).add(make_user())
    token = await tokens.issue(user.id, TokenPurpose.ACTIVATION, expires_at=utc_now() + DAY)
    other = await tokens.issue(user.id, TokenPurpose.PASSWORD_RESET, expires_at=utc_now() + DAY)

    assert await tokens.find_user(token, TokenPurpose.PASSWORD_RESET) is None
    assert not await tokens.consume(token, TokenPurpose.PASSWORD_RESET)

    assert await tokens.consume(token, TokenPurpose.ACTIVATION)
    assert await tokens.consume(other, TokenPurpose.PASSWORD_RESET)
