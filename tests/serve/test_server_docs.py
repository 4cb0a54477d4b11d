"""docs/server.md names every field that the server knows, and every route that it has."""

import re
from pathlib import Path

import pytest
from echo_engine import EchoEngine
from fastapi.routing import APIRoute

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.protocol.chat import ChatRequest
from slimdeploy.serve.protocol.completions import CompletionRequest
from slimdeploy.serve.protocol.responses import ResponseRequest
from slimdeploy.serve.protocol.settings import ChoiceFields
from slimdeploy.serve.protocol.tokens import TokenizeRequest
from slimdeploy.serve.protocol.wire import Label, Only

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
SHARED = "Fields that all share"
SECTIONS = {
    "Fields of a chat completion": ChatRequest,
    "Fields of a completion": CompletionRequest,
    "Fields of a response": ResponseRequest,
    "Fields of /tokenize": TokenizeRequest,
}
CASES = [(section, field) for section, model in SECTIONS.items() for field in sorted(model.model_fields)]


def rows(section: str, field: str) -> list[str]:
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return [line for line in body.splitlines() if line.startswith("|") and f"`{field}`" in line.split("|")[1]]


@pytest.mark.parametrize(("section", "field"), CASES)
def test_every_field_is_in_a_table(section: str, field: str) -> None:
    (row,) = rows(section, field) + rows(SHARED, field)
    words = row.split("|")[2]
    marks = {type(mark) for mark in SECTIONS[section].model_fields[field].metadata}
    if Label in marks:
        assert "no effect" in words
    elif Only in marks:
        assert "refused" in words or "taken" in words
    else:
        assert "honoured" in words


def test_the_shared_fields_are_told_once() -> None:
    for field in ChoiceFields.model_fields:
        assert sum(len(rows(section, field)) for section in (SHARED, *SECTIONS)) >= 1


def test_every_route_is_in_the_table() -> None:
    for route in create_app(EchoEngine(), ServeConfig()).routes:
        assert isinstance(route, APIRoute)
        assert f"{route.path.replace('{name:path}', 'NAME')}`" in PAGE
