"""Text of tools on its way into a prompt: it stands between marks that no tool can know, and opens no role. Pure.

A chat template renders messages to one text, and the engine reads that text with its special tokens on, so a tool whose
result has `<|im_start|>system` in it could speak for the operator. What looks like a special token of any model family
is broken up: the text stays readable, and no tokenizer finds one token in it.
"""

import hashlib
import re
from typing import Final

_BARS: Final = "|\uff5c\u2502\u2758"
"""Characters between which model families write the names of their special tokens."""
_WORDS: Final = (
    *("s", "bos", "eos", "pad", "unk", "mask", "cls", "sep", "think", "thinking", "answer"),
    *("tool", "tools", "system", "user", "assistant", "human", "model", "filename", "reponame"),
    *("image", "video", "audio", "sop", "eop", "gmask", "sys", "inst"),
)
_NAMES: Final = rf"[a-z0-9]+_[a-z0-9_]+|unused\d+|(?:{'|'.join(_WORDS)})"
"""What stands in angle brackets and is no markup: names with an underscore, and those that have a part in a chat."""
_SPECIAL: Final = re.compile(
    rf"<(?=\s*/?\s*(?:[{_BARS}]|(?:{_NAMES})\s*>|<\s*/?\s*SYS))|[{_BARS}](?=>)"
    r"|\[(?=(?-i:/?(?:INST|SYS|CLS|SEP|PAD|UNK|g?MASK|BOS|EOS|[A-Z]+(?:_[A-Z]+)+)\]))",
    re.IGNORECASE,
)
_HIDDEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that are not seen: zero width, bidirectional controls, variation selectors, tags."""
_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


def without_special_tokens(text: str) -> str:
    """The text with a space inside of what a tokenizer could take for a special token."""
    return _SPECIAL.sub(lambda found: f"{found[0]} ", text)


def plain_text(text: str) -> str:
    """A description of a tool without what a person who reads it would not see."""
    return _HIDDEN.sub("", _COMMENT.sub("", text)).strip()


def visible(text: str) -> str:
    r"""What a person is asked to approve: characters that are not seen, or turn the line around, as `\uXXXX`."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def digest_mark(text: str) -> str:
    """The mark of a result whose job is not known: a digest of the text, which no text can hold of itself."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def fenced(text: str, mark: str) -> str:
    """What the model is shown of a result; without a mark only broken up."""
    safe = without_special_tokens(text)
    if not mark:
        return safe
    return f"[result {mark}]\n{safe.replace(mark, '')}\n[end {mark}]"
