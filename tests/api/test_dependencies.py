import inspect
from collections.abc import Iterator

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from src.api import pages
from src.api.routers import accounts, audit_events, credentials, health, sessions, users, well_known

ROUTES = [
    route
    for module in (accounts, audit_events, credentials, health, pages, sessions, users, well_known)
    for route in module.router.routes
    if isinstance(route, APIRoute)
]


def calls_of(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for each in dependant.dependencies:
        yield from calls_of(each)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{','.join(route.methods)} {route.path}")
def test_no_route_pays_for_a_thread(route: APIRoute) -> None:
    for call in calls_of(route.dependant):
        function = call if inspect.isroutine(call) else type(call).__call__
        assert inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function), call
