"""Errors as clients read them: OpenAI's shape, the status, and the headers that belong to it."""

from typing import Any

from starlette.responses import JSONResponse

from slimdeploy.errors import ServeError

from .engine import RequestError
from .protocol.models import error_body

_SECONDS_UNTIL_ANOTHER_SERVER = 5


def told(error: Exception) -> dict[str, Any]:
    """The body. Of what no client is to read it says no more than that the server failed; its log says how."""
    match error:
        case RequestError(status=429):
            return error_body(str(error), "rate_limit_error", error.param, error.code)
        case RequestError():
            return error_body(str(error), "invalid_request_error", error.param, error.code)
        case ServeError():
            return error_body(str(error), "server_error")
        case _:
            return error_body("the server failed; its log says why", "server_error")


def refusal(error: Exception) -> JSONResponse:
    """A ServeError is nobody's fault: another server may do it, or this one later."""
    match error:
        case RequestError():
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            if error.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            return JSONResponse(told(error), error.status, headers)
        case ServeError():
            return JSONResponse(told(error), 503, {"Retry-After": str(_SECONDS_UNTIL_ANOTHER_SERVER)})
        case _:
            return JSONResponse(told(error), 500)
