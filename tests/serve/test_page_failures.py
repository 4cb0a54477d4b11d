"""What goes wrong is told on the page in words, and the question can be sent again. In Debian's Chromium."""

import re
from pathlib import Path

import pytest
from echo_engine import TOO_LONG, EchoEngine
from live_server import Serve
from playwright.sync_api import Browser, Page, Route, expect
from visited_page import Visit, ask, question_box, visited, words

from slimdeploy.config import ServeConfig

pytestmark = pytest.mark.chromium
CHAT = "**/v1/chat/completions"
KEY = "0123456789abcdef"


def answer_with(page: Page, body: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
    """As another server, or a proxy before ours, would answer the next questions."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body, headers={"content-type": "text/event-stream", **(headers or {})})

    page.route(CHAT, fulfil)


def test_a_failure_is_told_beside_what_came_before_it(visit: Visit, url: str, engine: EchoEngine) -> None:
    page = visit(url)
    for question, shown, told in (
        (TOO_LONG, "", "The server refused this: the prompt is too long."),
        ("close", "", "The server cannot answer now: the server is shutting down. Try again in 5 s."),
        ("break at once", "", "The server failed; its log says why."),
        ("one two break", "one two", "The server failed; its log says why."),
    ):
        answer = ask(page, question)
        expect(answer.get_by_role("alert")).to_have_text(told)
        expect(words(answer)).to_have_text(shown)
        assert len(engine.requests[-1].prompt) == 1  # what failed is not said to the model again


def test_who_has_asked_too_much_reads_when_to_ask_again(visit: Visit, serve: Serve) -> None:
    page = visit(serve(EchoEngine(), ServeConfig(tokens_per_minute=60)))
    expect(ask(page, "word " * 60).locator(".figures")).to_contain_text("out")
    told = re.compile(r"Too many requests: requests without a key have used the 60 tokens .*; ask again in \d\d s\.")
    expect(ask(page, "more").get_by_role("alert")).to_have_text(told)


def test_what_others_between_may_answer_is_told_and_the_question_goes_again(visit: Visit, url: str) -> None:
    page = visit(url)
    busy = '{"error": {"message": "slow down"}}'
    cut = 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    for status, body, headers, told in (
        (429, busy, {"retry-after": "7"}, "Too many requests: slow down. Try again in 7 s."),
        (502, "<h1>Bad gateway</h1>", {}, "The server answered with status 502."),
        (413, "", {}, "Too large for this server: the server answered with status 413."),
        (200, cut, {}, "The connection ended before the answer did."),
        (200, "data: {no JSON\n\n", {}, "The server sent something that this page cannot read."),
        (200, 'data: {"error": {}}\n\n', {}, "The server failed and did not say why."),
    ):
        answer_with(page, body, status, headers)
        answer = ask(page, "hello")
        expect(answer.get_by_role("alert")).to_have_text(told)
        page.unroute(CHAT)
        answer.get_by_role("button", name="Try again").click()
        expect(words(answer)).to_have_text("hello")
        expect(answer.get_by_role("alert")).to_have_count(0)


def test_a_connection_that_breaks_is_told(visit: Visit, url: str) -> None:
    page = visit(url)
    page.route(CHAT, lambda route: route.abort())
    expect(ask(page, "hello").get_by_role("alert")).to_have_text("The connection to the server broke.")


def test_events_without_a_choice_or_without_content_do_no_harm(visit: Visit, url: str) -> None:
    page = visit(url)
    events = [
        ": a comment",
        'data: {"choices": []}',
        'data:{"choices": [{"delta": {"role": "assistant"}}]}',
        'data: {"choices": [{"delta": {"content": null}}], "usage": null}',
        'data: {"choices": [{"delta": {"content": "yes"}}]}',
        'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}',
        'data: {"choices": [{"finish_reason": null}]}',
        'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}',
        "data: [DONE]",
    ]
    answer_with(page, "".join(f"{event}\r\n\r\n" for event in events))
    answer = ask(page, "hello")
    expect(answer.locator(".figures")).to_contain_text("3 tokens in, 1 out")
    expect(words(answer)).to_have_text("yes")


def test_an_empty_answer_is_called_empty(visit: Visit, url: str) -> None:
    page = visit(url)
    answer_with(page, 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
    expect(words(ask(page, "hello"))).to_have_text("an empty answer")


def test_the_key_is_asked_for_kept_with_the_tab_and_sent(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ann:{KEY}\n")
    page = visit(serve(EchoEngine(), ServeConfig(api_keys_file=str(tmp_path / "keys"))))
    key = page.get_by_role("textbox", name="This server asks for an API key")
    expect(key).to_be_focused()
    expect(page.locator("#model")).to_have_text("waiting for a key")
    key.fill("wrong")
    key.press("Enter")
    expect(page.locator("#model")).to_have_text("this key is not known here")
    key.fill(KEY)
    key.press("Enter")
    expect(key).to_be_hidden()
    expect(question_box(page)).to_be_focused()
    expect(words(ask(page, "hello"))).to_have_text("hello")
    page.reload()
    expect(page.locator("#model")).to_have_text("echo")
    assert page.evaluate("Object.values(localStorage).join()").find(KEY) == -1


def test_a_key_that_is_no_longer_known_is_asked_for_and_the_question_goes_again(
    visit: Visit, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"ann:{KEY}\n")
    page = visit(serve(EchoEngine(), ServeConfig(api_keys_file=str(tmp_path / "keys"))))
    key = page.get_by_role("textbox", name="This server asks for an API key")
    key.fill(KEY)
    key.press("Enter")
    answer_with(page, '{"error": {"message": "no such key"}}', 401)
    answer = ask(page, "hello")
    expect(answer.get_by_role("alert")).to_have_text("An API key is needed: no such key.")
    page.unroute(CHAT)
    expect(key).to_be_focused()
    key.press("Enter")
    expect(answer.get_by_role("button", name="Try again")).to_be_focused()
    page.keyboard.press("Enter")
    expect(words(answer)).to_have_text("hello")


def test_a_server_that_was_away_is_found_again(visit: Visit, url: str) -> None:
    page = visit(url)
    page.clock.install()
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.locator("#model")).to_contain_text("cannot be reached")
    question_box(page).fill("hello")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.unroute("**/v1/models")
    page.clock.fast_forward(5000)
    expect(page.locator("#model")).to_have_text("echo")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_breaches_of_the_policy_fail_these_tests(chromium: Browser, url: str) -> None:
    def commit() -> None:
        with visited(chromium, url, {}) as page:
            page.evaluate("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/' }))")
            page.evaluate("setTimeout('1')")
            page.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")

    with pytest.raises(AssertionError) as raised:
        commit()
    for directive in ("img-src", "script-src", "connect-src"):
        assert directive in str(raised.value)
