"""The interactive documentation loads scripts from elsewhere, so production serves it only if it is told to."""

from typing import Any

import pytest

from src.api.app import create_app
from tests.support.service import connect, make_production_settings

PAGES = ("/docs", "/redoc", "/docs/oauth2-redirect")
METADATA = "/.well-known/oauth-authorization-server"


async def ask(path: str, **settings: Any) -> Any:
    async with connect(create_app(make_production_settings(**settings))) as client:
        return await client.get(path)


@pytest.mark.parametrize("settings", [{"app_env": "development"}, {"app_env": "test"}, {"api_docs": True}])
@pytest.mark.parametrize("path", PAGES)
async def test_they_are_there_but_in_production_unless_it_wants_them(settings: dict[str, Any], path: str) -> None:
    assert (await ask(path, **settings)).status_code == 200


@pytest.mark.parametrize("settings", [{}, {"api_docs": False}, {"app_env": "development", "api_docs": False}])
@pytest.mark.parametrize("path", [*PAGES, "/"])
async def test_where_they_are_off_they_are_not_found(settings: dict[str, Any], path: str) -> None:
    response = await ask(path, **settings)

    assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")


async def test_the_document_itself_stays() -> None:
    response = await ask("/openapi.json")

    assert response.status_code == 200
    assert "/auth/login" in response.json()["paths"]


async def test_the_metadata_names_the_documentation_only_where_there_is_one() -> None:
    on, off = [(await ask(METADATA, api_docs=is_on)).json() for is_on in (True, False)]

    assert on["service_documentation"] == "https://accounts.example.com/docs"
    assert on.keys() - off.keys() == {"service_documentation"}
