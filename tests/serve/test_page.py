"""The chat page: one file that a strict policy allows, and that renders in a real browser."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from PIL import Image

from slimdeploy.serve.routes.page import PAGE


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


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
    for tag, attributes in Elements(PAGE.read_text()).found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href")), tag


def test_every_control_has_a_name_for_screen_readers() -> None:
    for tag, attributes in Elements(PAGE.read_text()).found:
        if tag == "button":
            assert "aria-label" in attributes or attributes.get("class") == "text"
        if tag in ("textarea", "img", "form"):
            assert attributes.get("aria-label") or attributes.get("alt")


@pytest.mark.chromium
def test_the_page_renders_in_a_browser(serve: Serve, tmp_path: Path) -> None:
    url = serve(EchoEngine())
    chromium = shutil.which("chromium")
    assert chromium is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --window-size=600,700"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [chromium, *flags.split(), profile]
    shown = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=60, check=True)
    # The script ran, past the policy, and reached the server: it put the model's name where "connecting…" stood.
    assert re.search(r'id="model">echo<', shown.stdout)
    assert "Content Security Policy" not in shown.stderr
    picture = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", url], capture_output=True, timeout=60, check=True)
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert len(colours) > 20
