"""The tokenizer and the chat template."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from . import _arrays, _layout
from ._library import Native, call, library

Message = Union[Mapping[str, Any], Tuple[str, str]]


def _take_text(text: _layout.tsk_text) -> str:
    """The text, which ends."""
    try:
        return ctypes.string_at(text.data, text.length).decode("utf-8", "replace") if text.length else ""
    finally:
        library().tsk_text_free(ctypes.byref(text))


def _take_ids(ids: _layout.tsk_tokens) -> List[int]:
    try:
        return list(ids.ids[: ids.count]) if ids.count else []
    finally:
        library().tsk_tokens_free(ctypes.byref(ids))


def _content(value: Any) -> str:
    """A message's text: a string, or a list of parts {"type": "text", "text": ...}, whose texts follow one another."""
    if isinstance(value, str):
        return value
    try:
        parts = [part["text"] for part in value if part["type"] == "text"]
        if len(parts) == len(value):
            return "".join(parts)
    except (TypeError, KeyError):
        pass
    raise TypeError(f"a message's content is a string or a list of text parts, not {value!r}")


def _messages(messages: Iterable[Message]) -> Tuple[Any, int]:
    made = []
    for message in messages:
        if isinstance(message, Mapping):
            if "role" not in message or "content" not in message:
                raise ValueError(f"a message has a 'role' and a 'content': {dict(message)!r}")
            role, content = message["role"], message["content"]
        else:
            role, content = message
        text = _content(content)
        if "\0" in text or "\0" in role:
            raise ValueError("a message has a NUL character in it")
        made.append(_layout.tsk_message(role.encode("utf-8"), text.encode("utf-8")))
    return (_layout.tsk_message * max(len(made), 1))(*made), len(made)


class Prompt(List[int]):
    """Token ids of a conversation, ready to generate from.

    Attributes:
        text: the conversation as the model's chat template renders it.
    """

    text: str = ""


class Tokenizer:
    """A model's tokenizer, as model.tokenizer, or alone by Tokenizer.load(). Immutable; threads may share it."""

    def __init__(self, native: Native, pointer: Optional[int] = None, model: Any = None):
        """Not to be called: use model.tokenizer or Tokenizer.load()."""
        self._native = native
        self._inside = pointer  # where it belongs to a model: `native` is the model then
        self._model = model

    @classmethod
    def load(cls, path: Union[str, "os.PathLike[str]"]) -> "Tokenizer":
        """Loads the tokenizer of a model's folder; config.json and weights are not looked at."""
        pointer = ctypes.c_void_p()
        call("tsk_tokenizer_load", os.fsencode(path), None, ctypes.byref(pointer))
        native = Native("tokenizer", pointer.value or 0, "tsk_tokenizer_free")
        tokenizer = cls(native)
        weakref.finalize(tokenizer, native.close)
        return tokenizer

    def _use(self) -> Any:
        return _Use(self._native, self._inside)

    def __len__(self) -> int:
        """One more than the largest id."""
        with self._use() as t:
            return int(library().tsk_tokenizer_size(t))

    def encode(self, text: str, special: bool = False) -> List[int]:
        """The ids of `text`. No token is added at either end.

        Args:
            special: True: special tokens spelled out in the text ("<|eot_id|>") become their ids. False, the default:
                such strings are ordinary text, so that an untrusted text cannot end its turn.
        """
        data, out = text.encode("utf-8"), _layout.tsk_tokens()
        with self._use() as t:
            call("tsk_tokenizer_encode", t, data, len(data), int(bool(special)), ctypes.byref(out))
        return _take_ids(out)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`. Ids without a token give nothing; bytes that are not UTF-8 become U+FFFD.

        Args:
            skip_special: False: special tokens are spelled out.
        """
        array, listed = _arrays.ids(ids)
        out = _layout.tsk_text()
        with self._use() as t:
            call("tsk_tokenizer_decode", t, array, len(listed), int(bool(skip_special)), ctypes.byref(out))
        return _take_text(out)

    def decoder(self, skip_special: bool = True) -> "Decoder":
        """Decodes one id at a time, in whole characters."""
        return Decoder(self, skip_special)

    def id(self, token: str) -> Optional[int]:
        """The id of an exact token string, as the vocabulary has it; None where there is none."""
        with self._use() as t:
            found = library().tsk_tokenizer_id(t, token.encode("utf-8"))
        return found if found >= 0 else None

    def token(self, id: int) -> Optional[str]:
        """The token string as the vocabulary has it (byte-level alphabet), or None."""
        with self._use() as t:
            found = library().tsk_tokenizer_token(t, id, None)
        return found.decode("utf-8", "replace") if found is not None else None

    def is_special(self, id: int) -> bool:
        with self._use() as t:
            return bool(library().tsk_tokenizer_is_special(t, id))

    @property
    def special_tokens(self) -> Dict[str, int]:
        """All special tokens and their ids."""
        found = {}
        for i in range(len(self)):
            if self.is_special(i):
                token = self.token(i)
                if token is not None:
                    found[token] = i
        return found

    @property
    def end_of_turn_id(self) -> Optional[int]:
        """The token with which the chat template ends a turn (LLaDA: <|eot_id|>), or None."""
        with self._use() as t:
            found = library().tsk_chat_end_of_turn(t)
        return found if found >= 0 else None

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the chat template renders it, the assistant's header at its end included.

        Args:
            messages: {"role": ..., "content": ...} or (role, content); roles: "system", "user", "assistant".
        """
        array, count = _messages(messages)
        out = _layout.tsk_text()
        with self._use() as t:
            call("tsk_chat_render", t, array, count, ctypes.byref(out))
        return _take_text(out)

    def chat(self, messages: Sequence[Message], special: bool = False) -> Prompt:
        """The same as token ids, ready to generate from; `.text` of what comes back is the rendered text.

        Args:
            special: True: special tokens spelled out in the messages count. False, the default: they are ordinary
                text, so that an untrusted text cannot end its turn.
        """
        array, count = _messages(messages)
        out = _layout.tsk_tokens()
        with self._use() as t:
            call("tsk_chat_encode", t, array, count, int(bool(special)), ctypes.byref(out))
        prompt = Prompt(_take_ids(out))
        prompt.text = self.render(messages)
        return prompt


class _Use:
    """`with`: the tokenizer's pointer, while what owns it is kept."""

    def __init__(self, native: Native, inside: Optional[int]):
        self._native, self._inside = native, inside

    def __enter__(self) -> int:
        pointer = self._native.retain()
        return self._inside if self._inside is not None else pointer

    def __exit__(self, *unused: Any) -> None:
        self._native.release()


class Decoder:
    """Ids to text, one at a time. All pieces joined, flush() included, equal Tokenizer.decode() of all the ids."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._decoder = _layout.tsk_decoder(skip_special=int(bool(skip_special)))

    def push(self, id: int) -> str:
        """The text that is complete with this id: whole characters only, maybe none."""
        out = _layout.tsk_text()
        with self._tokenizer._use() as t:
            call("tsk_decoder_push", t, ctypes.byref(self._decoder), id, ctypes.byref(out))
        return _take_text(out)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character was begun and not ended."""
        out = _layout.tsk_text()
        if library().tsk_decoder_flush(ctypes.byref(self._decoder), ctypes.byref(out)):
            raise MemoryError("tsk_decoder_flush")
        return _take_text(out)
