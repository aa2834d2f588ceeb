"""Builds a call from the flags of a submit. Pure but for the files that are read."""

import base64
import mimetypes
import sys
from pathlib import Path
from typing import Any

import orjson

from torpor.cli.errors import UsageError


def read_text(source: str) -> str:
    """The text; `-` is standard input."""
    if source != "-":
        return source
    text = sys.stdin.read()
    if not text.strip():
        raise UsageError("the prompt is empty; give it as an argument or on standard input")
    return text


def read_json(source: str, flag: str) -> Any:
    """JSON from a file, from standard input (`-`), or as it stands. Raises `UsageError`."""
    try:
        if source.lstrip().startswith(("{", "[")):
            return orjson.loads(source)
        return orjson.loads(sys.stdin.read() if source == "-" else Path(source).read_bytes())
    except OSError as error:
        raise UsageError(f"{flag}: cannot read {source}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{flag}: {source} is not JSON: {error.msg} at {error.pos}") from error


def pairs(given: list[str] | None, flag: str) -> dict[str, str]:
    """`name=value` each. Raises `UsageError`."""
    found = dict(each.partition("=")[::2] for each in given or [])
    if bad := [each for each in given or [] if "=" not in each or each.startswith("=")]:
        raise UsageError(f"{flag}: {bad[0]!r} is not of the form name=value")
    return found


def message(text: str, images: list[str] | None) -> dict[str, Any]:
    """The user message, with images beside the text. Raises `UsageError`."""
    if not images:
        return {"role": "user", "content": text}
    parts = [{"type": "image_url", "image_url": {"url": image_url(each)}} for each in images]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


def image_url(source: str) -> str:
    """The address of an image; a file as a data URL."""
    if source.startswith(("http://", "https://", "data:")):
        return source
    kind = mimetypes.guess_type(source)[0] or ""
    if not kind.startswith("image/"):
        raise UsageError(f"--image: {source} is no image by its name")
    try:
        content = base64.b64encode(Path(source).read_bytes()).decode()
    except OSError as error:
        raise UsageError(f"--image: cannot read {source}: {error.strerror}") from error
    return f"data:{kind};base64,{content}"
