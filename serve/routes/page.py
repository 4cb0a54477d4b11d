"""GET /: the chat page, one static file under a strict policy."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import HTMLResponse

PAGE = Path(__file__).parents[1] / "static" / "index.html"


def add_page(app: FastAPI) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = content_security_policy(page)

    @app.head("/")
    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(
            page,
            headers={
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )


def content_security_policy(page: str) -> str:
    """Allows the page's own inline script and style, by their hashes, and requests to this server; nothing else."""

    def hashes(tag: str) -> str:
        bodies = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
