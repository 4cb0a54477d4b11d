"""docs/server.md names every field that the server knows, and every route that it has."""

from pathlib import Path

import pytest
from echo_engine import EchoEngine
from fastapi.routing import APIRoute

from slimdeploy.config import ServeConfig
from slimdeploy.serve import protocol
from slimdeploy.serve.app import create_app

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
FIELDS = sorted({*protocol.ChatRequest.model_fields, *protocol._NEUTRAL_VALUES, *protocol._LABELS})


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_in_the_table(field: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{field}`" in line.split("|")[1]]
    assert len(rows) == 1
    words = rows[0].split("|")[2]
    if field in protocol._LABELS:
        assert "no effect" in words
    elif field in protocol._NEUTRAL_VALUES:
        assert "refused" in words or "taken" in words
    else:
        assert "honoured" in words


def test_every_route_is_in_the_table() -> None:
    for route in create_app(EchoEngine(), ServeConfig()).routes:
        assert isinstance(route, APIRoute)
        assert f"{route.path.replace('{name:path}', 'NAME')}`" in PAGE
