"""The page for everybody, in Debian's Chromium: by keyboard, by screen reader, on a phone, in light and dark."""

import base64
from typing import Any, Literal

import pytest
from echo_engine import EchoEngine
from live_server import Serve
from playwright.sync_api import Locator, Page, expect
from requests_to_send import picture
from visited_page import PHONE, Visit, ask, question_box, words

pytestmark = pytest.mark.chromium
# Text with the colours that it and its ground have in the end, and edges of what is typed into; sRGB, 0 to 255.
COLOURS = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function over(colours) {  // the last colour lies on top
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  }
  function grounds(element) {
    const found = [];
    for (let each = element; each; each = each.parentElement) {
      found.unshift(getComputedStyle(each).backgroundColor);
      if (each.matches("dialog")) break;
    }
    return found;
  }
  const passedOver = "[aria-disabled=true], .unseen, noscript";
  const seen = [...document.querySelectorAll("body *")].filter(
    (each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest(passedOver));
  const holdsText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const style = (each, part) => getComputedStyle(each, part);
  const texts = seen.filter(holdsText).map((each) => [each, style(each).color, 4.5]);
  const hints = seen.filter((each) => each.placeholder).map((each) => [each, style(each, "::placeholder").color, 4.5]);
  const icons = seen.filter((each) => each.matches("button svg")).map((each) => [each, style(each).color, 3]);
  const boxes = seen.filter((each) => each.matches(".entry, .box"));
  const edges = boxes.map((each) => [each.parentElement, style(each).borderColor, 3]);
  return [...texts, ...hints, ...icons, ...edges].map(([each, colour, least]) => ({
    what: `${each.tagName}.${each.className?.baseVal ?? each.className} ${each.textContent.trim().slice(0, 40)}`,
    ground: over(grounds(each)), colour: over([...grounds(each), colour]), least,
  }));
}"""


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two colours, 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: list[int]) -> float:
    """WCAG 2.2's relative luminance of sRGB, 0 to 1."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def show_everything(page: Page) -> None:
    """A conversation with pictures, a failure, a notice and attached pictures."""
    files = page.locator("#files")
    files.set_input_files([file("a.png", (5, 3)), file("a picture with a long name.png", (7, 9))])
    expect(ask(page, "x" * 300).locator(".figures")).to_contain_text("out")
    expect(ask(page, "a break here").get_by_role("alert")).to_be_visible()
    files.set_input_files({"name": "n" * 80, "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.locator("#notice")).to_be_visible()


def file(name: str, size: tuple[int, int]) -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": base64.b64decode(picture(size).partition(",")[2])}


def open_settings(page: Page) -> Locator:
    page.get_by_role("button", name="Settings").click()
    return page.get_by_role("dialog", name="Settings")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(visit: Visit, url: str, scheme: Literal["light", "dark"]) -> None:
    page = visit(url, color_scheme=scheme)
    found = page.evaluate(COLOURS)
    show_everything(page)
    found += page.evaluate(COLOURS)
    open_settings(page).get_by_label("Top p").fill("7")
    found += page.evaluate(COLOURS)
    poor = {
        each["what"]: ratio for each in found if (ratio := contrast(each["colour"], each["ground"])) < each["least"]
    }
    assert len(found) > 60
    assert poor == {}


def test_contrast_is_that_of_its_definition() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)


def test_a_phone_scrolls_in_one_direction_and_has_targets_for_fingers(visit: Visit, serve: Serve) -> None:
    engine = EchoEngine()
    engine.model = "a-model-whose-name-is-longer-than-a-phone-is-wide-" * 2
    page = visit(serve(engine), **PHONE)
    assert_fits(page)
    show_everything(page)
    assert_fits(page)
    open_settings(page)
    assert_fits(page)


def assert_fits(page: Page) -> None:
    """At the width of most phones, and of a page at four times its size."""
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 740})
        assert_fits_into(page, width)


def assert_fits_into(page: Page, width: int) -> None:
    too_wide = """() => ["html", "body", "main", "footer", "header", "dialog"].filter((name) => {
      const it = document.querySelector(name);
      return it.scrollWidth > Math.min(it.clientWidth, innerWidth);
    })"""
    assert page.evaluate(too_wide) == []
    assert page.evaluate("innerWidth") == width
    controls = page.locator("button:visible, input:visible, textarea:visible, select:visible")
    small = {}
    for control in controls.all():
        box = control.evaluate(
            "(it) => { const box = (it.type === 'checkbox' ? it.closest('label') : it).getBoundingClientRect();"
            "return [box.width, box.height, it.getAttribute('aria-label') ?? it.name]; }"
        )
        if min(box[:2]) < 44:
            small[box[2]] = box[:2]
    assert small == {}


def test_a_conversation_needs_no_mouse(visit: Visit, url: str, engine: EchoEngine) -> None:
    page = visit(url)
    keyboard = page.keyboard
    expect(question_box(page)).to_be_focused()
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    answer = page.get_by_role("article", name="Answer")
    expect(words(answer)).to_have_text("one\ntwo", use_inner_text=True)
    go_back_to(page, answer.get_by_role("button", name="Try again"))
    keyboard.press("Enter")
    expect(question_box(page)).to_be_focused()
    assert [request.prompt[0].parts for request in engine.requests] == [("one\ntwo",)] * 2
    go_back_to(page, page.get_by_role("button", name="Attach pictures"))
    with page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    chooser.value.set_files([file("a.png", (5, 3)), file("b.png", (6, 3))])
    go_back_to(page, page.get_by_role("button", name="Remove a.png"))
    keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove b.png")).to_be_focused()
    settings = page.get_by_role("button", name="Settings")
    go_back_to(page, settings)
    keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(settings).to_be_focused()


def go_back_to(page: Page, control: Locator) -> None:
    expect(control).to_be_visible()
    for _ in range(10):
        if control.evaluate("(it) => it === document.activeElement"):
            return
        page.keyboard.press("Shift+Tab")
    pytest.fail(f"{control} is not reached by the keyboard")


def test_what_has_the_focus_is_seen_and_all_controls_get_it(visit: Visit, url: str) -> None:
    page = visit(url)
    show_everything(page)
    look = """() => {
      const it = document.activeElement, box = it.closest(".box");
      const ringed = getComputedStyle(it).outlineStyle !== "none";
      return [it.getAttribute("aria-label") ?? it.id, ringed || getComputedStyle(box ?? it).boxShadow !== "none"];
    }"""
    seen = {}
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement !== document.body"):  # where the browser's own controls have it
            name, marked = page.evaluate(look)
            seen[name] = marked
    assert all(seen.values()), seen
    controls = page.locator("button:visible, textarea:visible").all()
    assert {control.get_attribute("aria-label") for control in controls} <= set(seen)


def test_every_control_and_picture_has_a_name_that_is_its_own(visit: Visit, url: str) -> None:
    page = visit(url)
    show_everything(page)
    named = names_by_role(page)
    assert len(named) > 10
    open_settings(page)
    in_settings = names_by_role(page)
    assert len(in_settings) > 15
    for names in (named, in_settings):
        assert all(name for _, name in names), names
    assert len(set(in_settings)) == len(in_settings), sorted(in_settings)


def names_by_role(page: Page) -> list[tuple[str, str]]:
    """As the browser tells screen readers."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "spinbutton", "checkbox", "combobox", "image", "dialog", "article", "form", "list"}
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    return [(role, name.strip()) for role, name in found if role in roles]


def test_screen_readers_hear_sentences_and_not_tokens(visit: Visit, serve: Serve) -> None:
    page = visit(serve(EchoEngine(seconds_per_token=0.002)))
    sentence = "It says something that takes about sixty letters to be said. "
    answer = ask(page, sentence * 6)
    expect(answer.locator(".figures")).to_contain_text("out")
    waiting, *heard = page.locator("#spoken p").all_text_contents()
    assert waiting == "Waiting for the answer"
    assert 1 < len(heard) <= 4
    assert " ".join(heard).split() == (sentence * 6).split()
    live = "(it) => it.closest('[aria-live], [role=log], [role=status], [role=alert]')"
    assert answer.evaluate(live) is None
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"


def test_who_wants_no_motion_sees_none(visit: Visit, serve: Serve) -> None:
    page = visit(serve(EchoEngine(seconds_per_token=0.05)), reduced_motion="reduce")
    answer = ask(page, "word " * 200)
    expect(words(answer)).to_contain_text("word")
    animation = "(it) => [getComputedStyle(it, '::after').content, getComputedStyle(it, '::after').animationName]"
    assert words(answer).evaluate(animation) == ['"▍"', "none"]
    page.keyboard.press("Escape")
