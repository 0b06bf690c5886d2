"""The OpenAPI document held against every answer that a test is given."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from httpx import Response

from src.api.app import app


@cache
def _operations() -> list[tuple[str, re.Pattern[str], Mapping[str, Any]]]:
    return [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operation["responses"])
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
    ]


async def require_documented(response: Response) -> None:
    """Fail if the status of an answer, or the code of a refusal, is not among those that its operation documents."""
    for method, path, answers in _operations():
        if response.request.method == method and path.fullmatch(response.request.url.path):
            await response.aread()
            assert _is_documented(response, answers), f"{method} {path.pattern}: {response.status_code} {response.text}"


def _is_documented(response: Response, answers: Mapping[str, Any]) -> bool:
    answer = answers.get(str(response.status_code))
    if answer is None or response.is_success:
        return answer is not None
    return response.json()["code"] in answer["content"]["application/json"]["examples"]
