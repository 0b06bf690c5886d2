from httpx import ASGITransport, AsyncClient

from src.api.app import create_app
from src.api.app import db as production_db
from src.db import AsyncDatabaseManager
from tests.conftest import Service, make_settings


async def test_the_front_door_points_to_the_documentation(service: Service) -> None:
    response = await service.client.get("/")

    assert response.status_code == 307
    assert response.headers["location"] == "/docs"


async def test_live_and_ready_on_a_migrated_database(service: Service) -> None:
    live, ready = await service.client.get("/health/live"), await service.client.get("/health/ready")

    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "mail": "ok"})


async def test_a_database_without_tables_is_not_ready_and_says_what_to_run(empty_url: str) -> None:
    await assert_not_ready(empty_url, "The database is not migrated: run `python -m src migrate`.")


async def test_a_database_that_is_away_is_not_ready_but_the_process_lives() -> None:
    await assert_not_ready("postgresql://nobody@127.0.0.1:1/nothing", "The service is busy or a part of it is down.")


async def assert_not_ready(url: str, detail: str) -> None:
    database = AsyncDatabaseManager(url)
    app = create_app(make_settings())
    app.dependency_overrides[production_db.session_dependency] = database.session_dependency
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        ready, live = await client.get("/health/ready"), await client.get("/health/live")
    await database.disconnect()

    assert ready.status_code == 503
    assert ready.json()["code"] == "SERVICE_UNAVAILABLE"
    assert ready.json()["detail"].startswith(detail)
    assert live.status_code == 200
