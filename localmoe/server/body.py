"""What the bodies of requests have in common: JSON that is text through and through."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from localmoe.chat.request import MAX_LOGPROBS
from localmoe.server.api_error import ApiError

Count = Annotated[int, Field(ge=1, le=1 << 30)]
Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=1 << 30)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
StopTexts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
_MAX_DEPTH = 64


class Body(BaseModel):
    """A request, or a part of it. Fields that are not known are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class Request(Body):
    """A whole request."""

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """Refuse half characters, which no tokenizer can read, and nesting without end."""
        if not isinstance(value, dict):
            return value
        if _depth_exceeds(value, _MAX_DEPTH):
            raise ValueError(f"JSON may be nested {_MAX_DEPTH} deep, not deeper")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the text has half a character in it (a lone surrogate)") from error
        return value


def refuse(name: str, why: str = "is not supported here") -> ApiError:
    """Return the refusal of a field whose value would change the answer."""
    return ApiError(400, f"{name} {why}", param=name, code="unsupported_parameter")


def refuse_set(values: dict[str, Any], harmless: tuple[Any, ...] = (None, 0, False)) -> None:
    """Raise ApiError for a field that is set to anything that is not harmless."""
    for name, value in values.items():
        if value not in harmless and value not in ([], {}):
            raise refuse(name, "is not supported here: leave it out")


def _depth_exceeds(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        deeper: list[Any] = []
        for each in level:
            inner = each.values() if isinstance(each, dict) else each
            if isinstance(each, (dict, list)):
                deeper.extend(one for one in inner if isinstance(one, (dict, list)))
        if not deeper:
            return False
        level = deeper
    return True
