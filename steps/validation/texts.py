"""Every text in a request or an answer. Pure.

Called by the steps that judge them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

JUDGED: Final = (
    *("messages", "prompt", "input", "instructions", "suffix"),
    *("tools", "functions", "response_format", "text"),
)
TOKENS: Final = ("logprobs", "prompt_logprobs")
"""Tokens one by one: «ass» and «isting» are one word, which the text has whole."""
_MEDIA: Final = ("url", "image_url", "file_data")
_REQUEST_FORM: Final = ("role", "type")
"""Members whose words are not of a text; a call with others is refused when it is submitted."""
_ANSWER_FORM: Final = (*TOKENS, "role", "type", "finish_reason", "stop_reason", "id")
"""Members whose words are not of a text."""


def request_texts(body: Mapping[str, Any]) -> Iterator[str]:
    """Every text that a model would read of a body."""
    for name in JUDGED:
        yield from texts_in(body.get(name), without=_REQUEST_FORM)


def choice_texts(choice: Any) -> Iterator[str]:
    """Everything that a model wrote in a choice."""
    return texts_in(choice, without=_ANSWER_FORM)


def texts_in(value: Any, *, without: Collection[str] = ()) -> Iterator[str]:
    """Every text in a value, as deep as it is; of objects the values only, and not of the members `without`. Data
    URLs of media are left out; anywhere else a text is judged whatever it begins with.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting += [
                part
                for name, part in each.items()
                if name not in without and not (name in _MEDIA and _is_data_url(part))
            ]
        elif isinstance(each, Sequence) and not isinstance(each, bytes):
            waiting += each


def _is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:")
