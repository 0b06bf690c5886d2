import inspect

import pytest

from src.services import (
    AccountService,
    ClientService,
    CredentialService,
    KeyService,
    SecondFactorService,
    SessionService,
    UserService,
)
from src.services.context import Service

SERVICES = (
    AccountService,
    ClientService,
    CredentialService,
    KeyService,
    SecondFactorService,
    SessionService,
    UserService,
)
METHODS = [
    (service, name, method)
    for service in SERVICES
    for name, method in inspect.getmembers(service, inspect.isfunction)
    if name not in vars(Service)
]


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, id=f"{service.__name__}.{name}") for service, name, method in METHODS if name[0] == "_"],
)
def test_no_helper_commits(method: object) -> None:
    assert "commit" not in inspect.getsource(method)  # type: ignore[arg-type]  # functions, as getmembers has found them


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.__name__)
def test_a_service_takes_its_context_alone(service: type[Service]) -> None:
    assert list(inspect.signature(service).parameters) == ["context"]
