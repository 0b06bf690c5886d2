from tests.support.databases import connected
from tests.support.service import Service, serve


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
    async with connected(url) as database, serve(database) as service:
        ready, live = await service.client.get("/health/ready"), await service.client.get("/health/live")

    assert ready.status_code == 503
    assert ready.json()["code"] == "SERVICE_UNAVAILABLE"
    assert ready.json()["detail"].startswith(detail)
    assert live.status_code == 200
