"""The chat page in a browser, watched: no error of its script, no breach of its policy, no request to another host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

Visit = Callable[..., "Page"]
"""Opens the page at a server's URL, with options of a browser context; gives Playwright's page."""
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@contextmanager
def visited(browser: "Browser", url: str, options: dict[str, Any]) -> "Iterator[Page]":
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints: list[str] = []

    def told(message: "ConsoleMessage") -> None:
        # A status that is no success is told as well, and meant.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def asked(address: str) -> None:
        if not address.startswith(("data:", "blob:")) and urlsplit(address).netloc != urlsplit(url).netloc:
            complaints.append(f"asked {address}")

    page.on("console", told)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("filechooser", lambda _: None)  # from the start: turned on when it is waited for, it may be late
    page.on("request", lambda request: asked(request.url))
    page.goto(url)
    page.locator("#model:not([data-state=waiting])").wait_for()
    try:
        yield page
        assert not complaints, complaints
    finally:
        context.close()


def question_box(page: "Page") -> "Locator":
    return page.get_by_role("textbox", name="Question")


def ask(page: "Page", question: str) -> "Locator":
    """Sends a question, and gives the answer's element, which may not be whole yet."""
    page.locator("#model[data-state=ready]").wait_for()
    question_box(page).fill(question)
    question_box(page).press("Enter")
    return page.get_by_role("article", name="Answer").last


def words(answer: "Locator") -> "Locator":
    return answer.locator(".words")
