"""Every error is one JSON envelope: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from safelight import log
from safelight.entrypoint.guard import REQUEST_ID
from safelight.errors import JobError, Overloaded, RequestError, SafelightError, Unauthorized

logger = log.get(__name__)

MAX_MESSAGE = 4000
"""Characters: what a client wrote may be as long as a body, and is not all sent back."""

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}


def envelope(
    status: int,
    message: str,
    *,
    type: str = RequestError.type,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 1] + "…"
    error = {"message": message, "type": type, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers)


def of(error: SafelightError) -> JSONResponse:
    """The error as its leaf declares it."""
    return envelope(
        error.status,
        error.message,
        type=error.type,
        param=error.param,
        code=error.code,
        headers=_headers(error),
    )


def _headers(error: SafelightError) -> dict[str, str]:
    match error:
        case Overloaded():
            return {"retry-after": str(error.retry_after_s)}
        case Unauthorized():
            return {"www-authenticate": "Bearer"}
        case JobError():
            # The SDKs repeat every 409 and 5xx twice: that would run the failed job again.
            return {"x-should-retry": "false"}
        case _:
            return {}


def from_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error that the framework found: no such route, wrong method, bad form."""
    return envelope(status, detail, code=_CODES.get(status, "invalid_request"), headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with the envelope."""
    app.add_exception_handler(SafelightError, _on_safelight_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_safelight_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SafelightError)
    return of(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"There is no route {request.method} {request.url.path}."
    elif error.status_code == 405:
        detail = f"{request.url.path} does not take {request.method}."
    return from_status(error.status_code, detail, error.headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """A path or query parameter (bodies are not FastAPI's to check here)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    message = f"'{name}': {first['msg'].lower()}, got {first.get('input')!r:.80}."
    return envelope(400, message, param=name, code="invalid_value")


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw. Its traceback goes to the log, with the id that the client gets."""
    request_id = request.scope.get(REQUEST_ID, "")
    logger.error("a request failed by a bug", request_id=request_id, path=request.url.path)
    return envelope(
        500,
        f"The server made an error; it is in its log under {request_id}.",
        type=SafelightError.type,
        code="internal_error",
        headers={"x-request-id": request_id},
    )
