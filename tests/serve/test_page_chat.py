"""A conversation on the page, in Debian's Chromium: pictures come in, answers stream, and are copied or made again."""

import base64
import re
import time
from pathlib import Path

import pytest
from echo_engine import EchoEngine
from live_server import Serve
from PIL import Image
from playwright.sync_api import Page, expect
from visited_page import Visit, ask, question_box, words

from slimdeploy.serve.engine import EncodedImage, GenerationRequest

pytestmark = pytest.mark.chromium
# A file as a browser hands it over when it is dropped or pasted.
TRANSFER = """([encoded, name]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: name.endsWith(".png") ? "image/png" : "text/plain" }));
  return transfer;
}"""


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return picture_file(tmp_path / "red.png", (5, 3))


@pytest.fixture
def green(tmp_path: Path) -> Path:
    return picture_file(tmp_path / "green.png", (7, 4))


def picture_file(path: Path, size: tuple[int, int]) -> Path:
    Image.new("RGB", size, path.stem).save(path)
    return path


def said(request: GenerationRequest) -> list[tuple[str, str]]:
    """Roles and texts, with [WIDTHxHEIGHT] for a picture."""
    return [(message.role, " ".join(map(_part, message.parts))) for message in request.prompt]


def _part(part: object) -> str:
    if not isinstance(part, EncodedImage):
        return str(part)
    image = part.decode()
    return f"[{image.width}x{image.height}]"


def test_an_answer_ends_with_its_time_to_first_token_tokens_per_second_and_tokens(visit: Visit, serve: Serve) -> None:
    page = visit(serve(EchoEngine(seconds_per_token=0.03)))
    expect(page.locator("#model")).to_have_text("echo")
    answer = ask(page, "one two three four five six")
    figures = answer.locator(".figures")
    expect(figures).to_have_text(
        re.compile(r"first token after \d+ ms · [\d.]+ tokens/s · 6 tokens in \(5 cached\), 6 out")
    )
    expect(words(answer)).to_have_text("one two three four five six")
    assert int(figures.inner_text().split()[3]) >= 30


def test_markup_in_an_answer_is_shown_and_not_obeyed(visit: Visit, url: str) -> None:
    page = visit(url)
    markup = "<img src=x onerror=alert(1)>\n<b>bold</b> **bold**"
    answer = ask(page, markup)
    expect(words(answer)).to_have_text(markup, use_inner_text=True)
    assert words(answer).locator("*").count() == 0


def test_several_pictures_are_chosen_and_one_removed(
    visit: Visit, url: str, engine: EchoEngine, red: Path, green: Path
) -> None:
    page = visit(url)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose pictures").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files([red, green])
    page.locator("#files").set_input_files(picture_file(red.parent / "blue.png", (9, 9)))
    page.get_by_role("button", name="Remove green.png").click()
    expect(words(ask(page, "both"))).to_have_text("[5x3] [9x9] both")
    expect(page.get_by_role("img", name="Picture blue.png")).to_be_visible()
    expect(page.get_by_role("list", name="Attached pictures")).to_be_hidden()  # they went with the question


def test_a_question_waits_for_its_pictures_to_be_read(visit: Visit, url: str, engine: EchoEngine, red: Path) -> None:
    page = visit(url)
    files = [picture_file(red.parent / f"{colour}.png", (9, 9)) for colour in ("blue", "white", "black", "gray")]
    page.locator("#files").set_input_files([red, *files])
    expect(words(ask(page, "all"))).to_have_text("[5x3] [9x9] [9x9] [9x9] [9x9] all")


def test_a_picture_is_dropped(visit: Visit, url: str, red: Path) -> None:
    page = visit(url)
    transfer = page.evaluate_handle(TRANSFER, [_base64(red), "red.png"])
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body.dropping")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("body.dropping")).to_have_count(0)
    expect(page.get_by_role("button", name="Remove red.png")).to_be_visible()
    expect(words(ask(page, "what"))).to_have_text("[5x3] what")


def test_what_is_no_picture_is_refused_in_words(visit: Visit, url: str, red: Path) -> None:
    page = visit(url)
    transfer = page.evaluate_handle(TRANSFER, [_base64(red), "notes.txt"])
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("alert")).to_have_text("notes.txt: no PNG, JPEG, WebP or GIF picture that can be read")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_picture_is_pasted(visit: Visit, url: str, red: Path) -> None:
    page = visit(url, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (encoded) => {
          const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
          const picture = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }""",
        _base64(red),
    )
    question_box(page).press("Control+v")
    expect(page.get_by_role("button", name="Remove image.png")).to_be_visible()
    expect(words(ask(page, "what"))).to_have_text("[5x3] what")


def test_an_answer_streams_in_and_stops_by_escape_or_by_the_button_which_frees_its_slot(
    visit: Visit, serve: Serve
) -> None:
    engine = EchoEngine(seconds_per_token=0.05)
    page = visit(serve(engine))
    for ended, stop in enumerate(
        (lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Stop").click)
    ):
        answer = ask(page, "word " * 200)
        expect(words(answer)).to_contain_text("word word")
        expect(answer.locator(".figures")).to_contain_text("first token after")
        question_box(page).press("Enter")  # neither sends nor stops while an answer is made
        assert engine.running == 1  # what stands there came while the rest is being made
        stop()
        expect(answer.locator(".figures")).to_contain_text("stopped")
        wait_until_ended(engine, ended + 1)
        expect(page.get_by_role("button", name="Send")).to_be_visible()


def wait_until_ended(engine: EchoEngine, count: int) -> None:
    until = time.monotonic() + 5
    while engine.ended < count and time.monotonic() < until:
        time.sleep(0.01)
    assert (engine.running, engine.ended) == (0, count)


def test_an_answer_is_copied_asked_for_again_and_its_question_edited(
    visit: Visit, url: str, engine: EchoEngine, red: Path
) -> None:
    page = visit(url, permissions=["clipboard-read", "clipboard-write"])
    page.locator("#files").set_input_files(red)
    answer = ask(page, "first\nsecond")
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "[5x3] first\nsecond"
    answer.get_by_role("button", name="Try again").click()
    expect(words(answer)).to_have_text("[5x3] first second")
    assert said(engine.requests[0]) == said(engine.requests[1]) == [("user", "[5x3] first\nsecond")]
    answer.get_by_role("button", name="Edit the question").click()
    expect(page.get_by_role("article")).to_have_count(0)
    expect(question_box(page)).to_have_value("first\nsecond")
    expect(page.get_by_role("button", name="Remove red.png")).to_be_visible()  # as the question had it


def test_an_answer_is_copied_where_browsers_keep_the_clipboard_from_pages(visit: Visit, url: str) -> None:
    page = visit(url)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as over http:// on a network
    page.evaluate("document.addEventListener('copy', () => { window.copied = String(getSelection()); })")
    ask(page, "to copy").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("article").get_by_text("Copied")).to_be_visible()
    assert page.evaluate("window.copied") == "to copy"


def test_earlier_turns_go_along_with_their_pictures_and_no_failed_one(
    visit: Visit, url: str, engine: EchoEngine, red: Path, green: Path
) -> None:
    page = visit(url)
    page.locator("#files").set_input_files(red)
    expect(words(ask(page, "one"))).to_have_text("[5x3] one")
    expect(ask(page, "a break").get_by_role("alert")).to_be_visible()
    page.locator("#files").set_input_files(green)
    expect(words(ask(page, "two"))).to_have_text("[7x4] two")
    assert said(engine.requests[-1]) == [("user", "[5x3] one"), ("assistant", "[5x3] one"), ("user", "[7x4] two")]


def test_questions_by_themselves_all_have_the_pictures_that_stay_attached(
    visit: Visit, url: str, engine: EchoEngine, red: Path
) -> None:
    page = visit(url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Ask each question by itself").check()
    page.get_by_role("button", name="Done").click()
    page.locator("#files").set_input_files(red)
    for question in ("one", "two"):
        expect(words(ask(page, question))).to_have_text(f"[5x3] {question}")
    assert [said(request) for request in engine.requests] == [[("user", "[5x3] one")], [("user", "[5x3] two")]]
    expect(page.get_by_role("img", name="Picture")).to_have_count(1)  # the conversation shows it once


def test_a_new_chat_begins_without_the_old_one(visit: Visit, url: str, red: Path) -> None:
    page = visit(url)
    page.locator("#files").set_input_files(red)
    expect(words(ask(page, "one"))).to_have_text("[5x3] one")
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask about a picture")).to_be_visible()
    expect(words(ask(page, "two"))).to_have_text("two")


def test_the_end_is_followed_unless_the_reader_went_back(visit: Visit, serve: Serve) -> None:
    page = visit(serve(EchoEngine(seconds_per_token=0.01)), viewport={"width": 600, "height": 400})
    answer = ask(page, "\n".join(["line"] * 60))
    expect(answer.locator(".figures")).to_contain_text("out")
    assert distance_from_end(page) < 2
    answer = ask(page, "line\nline " * 60)
    expect(words(answer)).to_contain_text("line line")
    page.evaluate("document.getElementById('scroller').scrollTop = 0")
    expect(answer.locator(".figures")).to_contain_text("out")
    assert page.evaluate("document.getElementById('scroller').scrollTop") == 0


def distance_from_end(page: Page) -> float:
    return float(page.locator("main").evaluate("(it) => it.scrollHeight - it.scrollTop - it.clientHeight"))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
