from uuid import uuid4

import pytest
from httpx import AsyncClient

from tests.conftest import Service
from tests.steps import sign_up


class TestUsersAPI:
    async def test_signup(self, client: AsyncClient) -> None:
        response = await client.post(
            "/auth/signup", json={"email": "ana@example.com", "password": "strong-pass-12-chars", "name": "Ana"}
        )

        assert response.status_code == 201, response.text
        body = response.json()
        assert "user_id" in body
        assert body["activation_required"] in {True, False}

    async def test_get_user_not_found(self, client: AsyncClient) -> None:
        response = await client.get("/api/users/00000000-0000-0000-0000-000000000000")

        assert response.status_code == 404
        assert response.json()["code"] == "USER_NOT_FOUND"


async def test_anyone_may_read_the_public_profile_and_no_more(service: Service) -> None:
    user_id = (await sign_up(service, name="Ana"))["user_id"]

    response = await service.client.get(f"/api/users/{user_id}")

    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"id", "name", "is_active", "created_at"}
    assert (body["id"], body["name"], body["is_active"]) == (user_id, "Ana", False)
    assert body["created_at"].endswith("Z")


async def test_an_unknown_user_is_a_404_in_the_envelope(service: Service) -> None:
    response = await service.client.get(f"/api/users/{uuid4()}")

    assert response.status_code == 404
    assert response.json() == {"detail": "There is no such user.", "code": "USER_NOT_FOUND", "details": {}}


@pytest.mark.parametrize("user_id", ["1", "not-a-uuid", "%00", "00000000-0000-0000-0000-00000000000g"])
async def test_a_malformed_id_is_a_422_that_does_not_repeat_it(service: Service, user_id: str) -> None:
    response = await service.client.get(f"/api/users/{user_id}")

    assert response.status_code == 422
    assert response.json()["details"] == {"fields": [{"field": "path.user_id", "reason": "is not a UUID"}]}
