"""Pages of other web sites that a browser lets in, because `serve.cors_origins` names them."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from .engine import RequestError
from .refusals import refusal


class OtherPages(CORSMiddleware):
    """ASGI middleware. What it refuses has OpenAI's shape: Starlette's own words are plain text."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client adds a dozen of its own
            expose_headers=["Retry-After", "X-Request-Id"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        message = (
            f"pages of '{origin[:100]}' may not ask this with {method[:20]}; serve.cors_origins names those that may, "
            "with GET and POST"
        )
        refused = refusal(RequestError(message, status=answer.status_code))
        for name, value in answer.headers.items():
            refused.headers.setdefault(name, value)
        return refused
