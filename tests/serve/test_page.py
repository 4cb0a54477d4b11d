"""The chat page as a file: one that a strict policy allows, and that says what the server does."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve

from slimdeploy.serve.engine import RANGES, Sampling
from slimdeploy.serve.protocol.chat import ChatRequest
from slimdeploy.serve.routes.page import PAGE

Attributes = dict[str, str | None]


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, Attributes]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(PAGE.read_text()).found
NUMBERS = {str(each["name"]): each for tag, each in ELEMENTS if tag == "input" and each.get("type") == "number"}


def test_the_page_comes_with_a_policy_that_allows_its_own_script_and_nothing_else(serve: Serve) -> None:
    response = httpx.get(serve(EchoEngine()))
    policy = response.headers["content-security-policy"]
    assert response.headers["content-type"].startswith("text/html")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy


def test_the_page_needs_no_other_host_and_no_inline_attributes() -> None:
    for tag, attributes in ELEMENTS:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href")), tag


def test_no_answer_is_ever_read_as_html() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "setHTML", "DOMParser"):
        assert way not in PAGE.read_text()


@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_is_a_field_of_the_request_within_the_range_that_the_server_takes(name: str) -> None:
    assert name in ChatRequest.model_fields
    if name in RANGES:
        lowest, highest = RANGES[name]
        assert float(NUMBERS[name]["min"] or "nan") == max(lowest, 0 if name == "top_k" else lowest)
        assert float(NUMBERS[name].get("max") or "inf") == highest


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - {"seed", "max_completion_tokens"}))
def test_an_empty_setting_shows_the_server_s_own_value(name: str) -> None:
    assert float(NUMBERS[name]["placeholder"] or "nan") == getattr(Sampling(1), name)
