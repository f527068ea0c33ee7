"""Refusals: one for all APIs, shown in the shape that each API's clients read."""

from __future__ import annotations

from typing import Any, Literal

from localmoe.errors import (
    BudgetError,
    ChatError,
    ContextFullError,
    LocalMoeError,
    SettingsError,
)

Shape = Literal["openai", "anthropic"]
_KINDS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}
"""Names of what went wrong, by status: OpenAI's, then Anthropic's."""
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "queue_full"}


class ApiError(Exception):
    """A request that is not served, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status)
        self.retry_seconds = retry_seconds

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the refusal."""
        if self.retry_seconds is not None:
            return {"Retry-After": str(self.retry_seconds)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self, shape: Shape) -> dict[str, Any]:
        """Return what is answered, or sent in a stream that has begun."""
        openai, anthropic = _KINDS.get(self.status, _KINDS[500 if self.status >= 500 else 400])
        if shape == "anthropic":
            return {"type": "error", "error": {"type": anthropic, "message": self.message}}
        error = {
            "message": self.message, "type": openai, "param": self.param, "code": self.code
        }  # fmt: skip
        return {"error": error}


def shape_of(path: str) -> Shape:
    """Return which API a path belongs to."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def api_error(error: BaseException) -> ApiError:
    """Return the refusal for an error while a request was looked at or answered."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, (ChatError, SettingsError)):
        return ApiError(400, str(error))
    if isinstance(error, BudgetError):
        return ApiError(503, str(error))
    if isinstance(error, LocalMoeError):
        return ApiError(500, str(error))
    return ApiError(500, f"the server failed ({type(error).__name__}); its log says where")
