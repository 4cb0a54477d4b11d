"""The page's settings, in Debian's Chromium: what is set reaches the request, what is empty does not."""

import json
from typing import Any

import pytest
from echo_engine import EchoEngine
from playwright.sync_api import Page, expect
from visited_page import Visit, ask, question_box, words

from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import Sampling

pytestmark = pytest.mark.chromium


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()


def sent_body(page: Page, question: str) -> dict[str, Any]:
    """What the page sends for a question."""
    with page.expect_request("**/v1/chat/completions") as request:
        answer = ask(page, question)
    expect(answer.locator(".figures")).to_contain_text("out")
    return dict(request.value.post_data_json)


def test_untouched_settings_leave_everything_to_the_server(visit: Visit, url: str, engine: EchoEngine) -> None:
    page = visit(url)
    body = sent_body(page, "hello")
    assert set(body) == {"model", "messages", "stream", "stream_options"}
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert engine.requests[0].sampling == Sampling(ServeConfig().max_tokens)


def test_every_setting_reaches_the_engine(visit: Visit, url: str, engine: EchoEngine) -> None:
    page = visit(url)
    open_settings(page)
    chosen = {
        "Temperature": "0.7", "Seed": "11", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Presence": "0.5",
        "Frequency": "-0.5", "Repetition": "1.1", "Longest answer": "3", "Stop texts": "###\n\\n\\n",
    }  # fmt: skip
    for label, value in chosen.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_role("button", name="Done").click()
    answer = ask(page, "one two three four five")
    expect(words(answer)).to_have_text("one two three")
    expect(answer.locator(".figures")).to_contain_text("cut at the longest answer")
    (request,) = engine.requests
    assert request.sampling == Sampling(
        max_tokens=3, temperature=0.7, seed=11, top_p=0.9, top_k=40, min_p=0.05, presence_penalty=0.5,
        frequency_penalty=-0.5, repetition_penalty=1.1, stop=("###", "\n\n"),
    )  # fmt: skip
    assert [(message.role, message.parts) for message in request.prompt] == [
        ("system", ("Be brief.",)),
        ("user", ("one two three four five",)),
    ]


def test_settings_outlive_a_reload_and_are_reset_together(visit: Visit, url: str) -> None:
    page = visit(url)
    open_settings(page)
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Ask each question by itself").check()
    page.reload()
    expect(page.get_by_role("button", name="Settings, 2 changed")).to_be_visible()
    assert sent_body(page, "hello")["temperature"] == 0.3
    open_settings(page)
    expect(page.get_by_label("Ask each question by itself")).to_be_checked()
    page.get_by_role("button", name="Reset all").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("All settings are reset")
    expect(page.get_by_label("Ask each question by itself")).not_to_be_checked()
    page.keyboard.press("Escape")
    assert "temperature" not in sent_body(page, "hello")
    assert json.loads(page.evaluate("localStorage.getItem('slimdeploy.settings')")) == {}


def test_a_setting_that_no_server_takes_is_shown_and_nothing_is_sent(
    visit: Visit, url: str, engine: EchoEngine
) -> None:
    page = visit(url)
    for label, value in (("Top p", "3"), ("Longest answer", "1.5"), ("Stop texts", "a\nb\nc\nd\ne")):
        open_settings(page)
        page.get_by_label(label).fill(value)
        page.keyboard.press("Escape")
        ask(page, "hello")
        expect(page.get_by_label(label)).to_be_focused()
        page.get_by_label(label).fill("")
        page.keyboard.press("Escape")
    assert engine.requests == []
    question_box(page).press("Enter")  # the question was kept
    expect(words(page.get_by_role("article", name="Answer"))).to_have_text("hello")


def test_saved_settings_that_nobody_understands_do_no_harm(visit: Visit, url: str) -> None:
    page = visit(url)
    for saved in ("no JSON", "null", "[1]", '{"theme": "neon", "temperature": {}, "alone": "yes"}'):
        page.evaluate("(saved) => localStorage.setItem('slimdeploy.settings', saved)", saved)
        page.reload()
        expect(page.locator("#model")).to_have_text("echo")
        assert set(sent_body(page, "hello")) == {"model", "messages", "stream", "stream_options"}


def test_the_colours_follow_the_system_unless_they_are_chosen(visit: Visit, url: str) -> None:
    page = visit(url, color_scheme="dark")
    dark = background(page)
    page.emulate_media(color_scheme="light")
    light = background(page)
    assert light != dark
    open_settings(page)
    page.get_by_label("Colours").select_option("Dark")
    assert background(page) == dark
    page.emulate_media(color_scheme="dark")
    page.get_by_label("Colours").select_option("Light")
    assert background(page) == light


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
