"""From messages to the text that a model was trained to continue."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from localmoe.backends.base import Engine, Tokenizer
from localmoe.chat.allowance import TemplateLimits
from localmoe.chat.messages import Message
from localmoe.chat.template_sandbox import BoundedEnvironment
from localmoe.errors import ChatError

CHATML = """\
{% for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_MAX_SOURCE_CHARACTERS = 1_000_000
_MAX_DATE_FORMAT_CHARACTERS = 64


class Renderer(Protocol):
    """Turns a conversation into one text."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text up to the place where the assistant speaks next. Raises ChatError."""
        ...


class ChatTemplate:
    """A checkpoint's Jinja template, rendered in a sandbox with bounded time and memory."""

    def __init__(
        self,
        source: str,
        *,
        bos_text: str = "",
        eos_text: str = "",
        limits: TemplateLimits | None = None,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        """Compile a template. Raises ChatError when it is no valid Jinja.

        `now` is the clock of templates that write the date.
        """
        self.source = source
        """The template's text."""
        if len(source) > _MAX_SOURCE_CHARACTERS:
            raise ChatError(
                f"the model's chat template has {len(source)} characters; at most "
                f"{_MAX_SOURCE_CHARACTERS} were expected. Use --raw to send plain text"
            )
        self._environment = BoundedEnvironment(limits or TemplateLimits())
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = partial(_strftime, now)
        self._markers = {"bos_token": bos_text, "eos_token": eos_text}
        try:
            self._template = self._environment.load_source(source)
        except TemplateSyntaxError as error:
            raise ChatError(
                f"the model's chat template is not valid Jinja: line {error.lineno}: "
                f"{_reason(error)}. Use --raw to send plain text"
            ) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise ChatError(
                f"the model's chat template cannot be compiled: {error}. "
                "Use --raw to send plain text"
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text up to the place where the assistant speaks next. Raises ChatError."""
        return self.render_values([{"role": m.role, "content": m.content} for m in messages])

    def render_values(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages and tools as they are, with more variables that the template may know.

        Those never replace the messages, the tools or the markers. Raises ChatError.
        """
        variables = {
            "documents": None,
            **{str(name): value for name, value in (options or {}).items()},
            "messages": messages,
            "add_generation_prompt": True,
            "tools": tools,
            **self._markers,
        }
        try:
            return self._environment.render(self._template, variables)
        except SecurityError as error:
            raise ChatError(
                f"the model's chat template was stopped: {_reason(error)}. "
                "Use --raw to send plain text"
            ) from error
        except TemplateError as error:
            raise ChatError(f"the model's chat template refused the messages: {error}") from error
        # A template can raise anything that Python can.
        except Exception as error:
            raise ChatError(
                "the model's chat template failed: "
                f"{type(error).__name__}: {error}. Use --raw to send plain text"
            ) from error


class PlainText:
    """No template: the words of all messages, one after the other."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return all contents joined."""
        return "".join(message.content for message in messages)


def renderer_for(engine: Engine) -> tuple[Renderer, str | None]:
    """Return the renderer of a checkpoint and, where it is not its own, a note for the user.

    Without a template ChatML is used if the vocabulary has its markers; else ChatError.
    """
    tokenizer = engine.tokenizer
    source, note = engine.chat_template, None
    if source is None:
        if not all(is_token(tokenizer, text) for text in ("<|im_start|>", "<|im_end|>")):
            raise ChatError(
                "the model file has no chat template, and its vocabulary does not have the "
                "markers of ChatML (<|im_start|>, <|im_end|>). It may not be a chat model: "
                "use --raw to send the prompt as plain text"
            )
        source = CHATML
        note = "The model file has no chat template: ChatML is used, as its vocabulary suggests."
    template = ChatTemplate(
        source,
        bos_text=special_text(tokenizer, tokenizer.bos),
        eos_text=special_text(tokenizer, tokenizer.eos),
    )
    return template, note


def special_text(tokenizer: Tokenizer, token: int | None) -> str:
    """Return the text of a control token such as <s>; "" for None."""
    if token is None:
        return ""
    return tokenizer.token_bytes(token, special=True).decode("utf-8", errors="replace")


def is_token(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is one token of a vocabulary."""
    tokens = tokenizer.encode(text, special=True)
    return len(tokens) == 1 and special_text(tokenizer, tokens[0]) == text


def _reason(error: TemplateError) -> str:
    return (error.message or type(error).__name__).rstrip(".")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime(now: Callable[[], datetime.datetime], date_format: str) -> str:
    if len(date_format) > _MAX_DATE_FORMAT_CHARACTERS:
        raise SecurityError(f"a date format of more than {_MAX_DATE_FORMAT_CHARACTERS} characters")
    return now().strftime(date_format)
