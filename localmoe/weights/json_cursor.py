"""Walks forward through hostile JSON and never builds more of it than one small value."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import NoReturn

from localmoe.errors import ModelFormatError

_CHUNK_NBYTES = 1 << 20
_SPACE = re.compile(rb"[ \t\n\r]*+")
_MARKS = {mark: re.compile(_SPACE.pattern + re.escape(mark)) for mark in (b"{", b"}", b":", b",")}
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"')


class JsonCursor:
    """A position in the bytes of one JSON text.

    A large text of small values would take thirty times its length as Python objects; here the
    caller takes one member of an object at a time. `path` names the file in messages. All methods
    raise ModelFormatError.
    """

    def __init__(self, data: bytes, path: str) -> None:
        """Stand before the first value; the text must be UTF-8."""
        self._data, self.path, self._at = data, path, 0
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, len(data), _CHUNK_NBYTES):
                decoder.decode(data[start : start + _CHUNK_NBYTES])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self._error("is not UTF-8") from error

    def members(self, what: str, name_nbytes: int, most: int) -> Iterator[str]:
        """Enter an object and yield its keys; after each the caller takes the value.

        No key may come twice, be longer than `name_nbytes`, empty, or have a NUL.
        """
        self._expect(b"{", what)
        seen: set[str] = set()
        if self._skips(b"}"):
            return
        while True:
            name = self.string(f"a name in {what}", name_nbytes)
            if not name or "\0" in name:
                raise self._error(f"has a name in {what} that is empty or has a NUL: {name!r}")
            if name in seen:
                raise self._error(f"has {name!r} twice in {what}")
            if len(seen) == most:
                raise self._error(f"has more than {most} entries in {what}, and no model has")
            seen.add(name)
            self._expect(b":", what)
            yield name
            if not self._skips(b","):
                break
        self._expect(b"}", what)

    def string(self, what: str, most_nbytes: int) -> str:
        """Take a string of so many bytes, escapes included."""
        self._skip_space()
        found = _STRING.match(self._data, self._at, self._at + most_nbytes + 2)
        if found is None:
            raise self._error(f"should have a string of at most {most_nbytes} bytes for {what}")
        text = found[0].decode()
        self._at = found.end()
        if "\\" not in text:
            return text[1:-1]
        try:
            value: str = json.loads(text)
            value.encode()  # an escape may be half of a pair, which is no text
        except ValueError as error:
            raise self._error(f"has an escape in {what} that means nothing") from error
        return value

    def value(self, what: str, most_nbytes: int) -> object:
        """Take any value of so many bytes. An object comes as a list of pairs in a tuple.

        Text in it has each byte as a character.
        """
        self._skip_space()
        # Latin-1: a place in the text is the place in the bytes, and no character is cut.
        window = self._data[self._at : self._at + most_nbytes].decode("latin-1")
        try:
            value, nbytes = _DECODER.raw_decode(window)
        except RecursionError as error:
            raise self._error(f"has {what} nested too deep") from error
        except ValueError as error:
            raise self._error(
                f"should have JSON of at most {most_nbytes} bytes for {what} ({error})"
            ) from error
        self._at += nbytes
        return value

    def end(self) -> None:
        """Nothing but space may be left."""
        self._skip_space()
        if self._at != len(self._data):
            raise self._error("goes on after the end of its JSON")

    def _skip_space(self) -> None:
        found = _SPACE.match(self._data, self._at)
        assert found  # it may be empty
        self._at = found.end()

    def _skips(self, mark: bytes) -> bool:
        found = _MARKS[mark].match(self._data, self._at)
        if found:
            self._at = found.end()
        return found is not None

    def _expect(self, mark: bytes, what: str) -> None:
        if not self._skips(mark):
            self._skip_space()
            found = self._data[self._at : self._at + 1]
            raise self._error(f"should have {mark!r} in {what}, but has {found!r}")

    def _error(self, what: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.path} {what}, near byte {self._at} of its JSON. It is damaged: pull it again."
        )


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:32]} is not allowed")


_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: (pairs,), parse_constant=_refuse)
