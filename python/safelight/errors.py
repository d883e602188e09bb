"""Every error Safelight raises on purpose.

::

    SafelightError
    ├── RequestError              the caller can mend it              4xx
    │   ├── InvalidRequest        a field is wrong                    400
    │   │   └── UnknownField      a field is not known                400
    │   ├── Unauthorized          the key is missing or wrong         401
    │   ├── Forbidden             a page of another site sent it      403
    │   ├── NotFound              no such job, route or content       404
    │   │   └── ModelNotFound     no such model                       404
    │   ├── PayloadTooLarge       the body is over the limit          413
    │   └── Overloaded            the queue is full, come back        429
    ├── JobError                  why an accepted job ended badly     5xx
    │   ├── GenerationFailed      the model or the encoder failed     500
    │   └── JobCancelled          somebody stopped it                 409
    ├── Unavailable               not ready, or going down            503
    ├── ConfigError               the configuration is wrong          exit 2
    ├── StartupFailed             a process did not come up           exit 1
    ├── WireError                 a peer sent what it must not        —
    └── IllegalTransition         a sample cannot change state so     —

Each leaf owns the HTTP status and the OpenAI `type` and `code` that clients see.
"""

from __future__ import annotations

from typing import ClassVar


class SafelightError(Exception):
    """Root of the tree. `str(error)` is a full sentence for the person who caused it."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param
        if code is not None:
            self.code = code


class RequestError(SafelightError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """A field has a wrong type or value; `param` names it."""

    code = "invalid_value"


class UnknownField(InvalidRequest):
    """A field that is not known; the message names the nearest one that is."""

    code = "unknown_parameter"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """A browser sent it for a page of another site, and there is no key that the page lacks."""

    status = 403
    code = "cross_site"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"
    param = "model"


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"


class Overloaded(RequestError):
    """The bounded queue is full. `retry_after_s` is the predicted wait for a place, 1 to 60 s."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class JobError(SafelightError):
    """An accepted job ended without its result."""


class GenerationFailed(JobError):
    code = "generation_failed"


class JobCancelled(JobError):
    status = 409
    type = "invalid_request_error"
    code = "cancelled"


class Unavailable(SafelightError):
    status = 503
    code = "unavailable"


class ConfigError(SafelightError):
    """A flag, environment variable or config key is unknown, ill-typed or out of range."""


class StartupFailed(SafelightError):
    """A process died or did not become ready; the message carries its last words."""


class WireError(SafelightError):
    """A message that is not of the link's union, too large, or from a stranger."""


class IllegalTransition(SafelightError):
    """A sample was asked to make a transition that its table does not have."""
