"""The API is what its description says: what it allows is answered, and all else is refused as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from echo_engine import EchoEngine
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from live_server import live_server
from requests_to_send import picture
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.openapi import description

EXAMPLES = 200
CONFIG = SchemathesisConfig.from_dict({"generation": {"max-examples": EXAMPLES, "database": "none"}})
LIMITS = ServeConfig(max_images=10_000, max_choices=16)
DESCRIPTION = description("echo", LIMITS)
SCHEMA = schemathesis.openapi.from_dict(DESCRIPTION, config=CONFIG)
CASES = [
    (path, method, mode)
    for path, methods in DESCRIPTION["paths"].items()
    for method, told in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "requestBody" in told
]
schemathesis.openapi.format(
    "picture-url", st.sampled_from([picture(), picture((2, 9), "jpeg"), picture((4, 4), "gif")])
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_server(EchoEngine(), LIMITS) as url:
        yield url


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_the_server_does_what_its_description_says(url: str, path: str, method: str, mode: GenerationMode) -> None:
    cases = SCHEMA[path][method].as_strategy(generation_mode=mode)
    with requests.Session() as session:

        @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(cases)
        def check(case: schemathesis.Case) -> None:
            if mode is GenerationMode.POSITIVE:
                case.body = with_whole_numbers(case.body)
                assume(possible(case.body))
            case.call_and_validate(base_url=url, session=session)

        check()


def possible(body: Any) -> bool:
    """What no schema says: a number is at most another, or a text is JSON; or what it would say at length."""
    if not isinstance(body, dict):
        return True
    constraint, kind = body.get("structured_outputs"), body.get("response_format")
    if constraint and (isinstance(constraint.get("json"), str) or (kind and kind["type"] != "text")):
        return False
    prompts = body.get("prompt")
    lengths = [body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    default = LIMITS.max_tokens if prompts is None else 16
    if (body.get("min_tokens") or 0) > next((length for length in lengths if length), default):
        return False
    several = isinstance(prompts, list) and not isinstance(prompts[0], int | float)
    return not several or len(prompts) * (body.get("n") or 1) <= LIMITS.max_choices


def with_whole_numbers(value: Any) -> Any:
    """JSON Schema calls 1.0 an integer; the server takes what is written like one."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [with_whole_numbers(each) for each in value]
        case dict():
            return {key: with_whole_numbers(each) for key, each in value.items()}
        case _:
            return value


def test_every_route_is_described_and_nothing_else() -> None:
    app = create_app(EchoEngine(), ServeConfig())
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods - {"HEAD"}  # which the description leaves out
    }
    assert all(isinstance(route, APIRoute) for route in app.routes)
    paths = DESCRIPTION["paths"]
    assert routes == {(path, method) for path, methods in paths.items() for method in methods}
