"""Media that a call may reference: none by URL, unless the operator allows domains. Pure.

Called by `predictor.engine.vllm.serving`. vLLM would fetch any address in a message, from inside the cluster.
`--allowed-media-domains` and `--allowed-local-media-path` (vLLM's own) allow it, and vLLM then checks each address.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from predictor.errors import BadRequest


def check_media(body: Mapping[str, Any], *, domains: bool, local_path: bool) -> None:
    """Raises `BadRequest` naming the first part whose address may not be fetched."""
    for field, url in _addresses(body.get("messages")):
        scheme = url.partition(":")[0].strip().lower()
        if scheme == "data" or (local_path if scheme == "file" else domains):
            continue
        raise BadRequest(
            "media are not fetched from addresses here: send a data: URL, "
            "or let the operator set --allowed-media-domains",
            field,
        )


def _addresses(messages: Any) -> Iterator[tuple[str, str]]:
    """Each address in the messages' content parts, with its place in the body; messages may be of several
    conversations.
    """
    for row, message in enumerate(_list(messages)):
        if isinstance(message, list):
            for place, found in _addresses(message):
                yield place.replace("messages", f"messages[{row}]", 1), found
            continue
        content = message.get("content") if isinstance(message, Mapping) else None
        for column, part in enumerate(_list(content)):
            for name, value in part.items() if isinstance(part, Mapping) else ():
                url = value.get("url") if isinstance(value, Mapping) else value
                if name.endswith("_url") and isinstance(url, str):
                    yield f"messages[{row}].content[{column}].{name}", url


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
