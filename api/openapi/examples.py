"""What the OpenAPI document shows as answers: one of each kind of thing, as the api sends it.

Called by the modules that describe calls. Must not know any call.
"""

from collections.abc import Mapping
from typing import Any, Final

Example = Mapping[str, Any]

_JOB_ID: Final = "job_0123456789abcdef01234567"
_MODEL: Final = "smollm2-135m-instruct"
_AT_S: Final = 1_764_000_000
_AT_MS: Final = _AT_S * 1000
_USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}

ACCEPTED: Final[Example] = {
    "id": _JOB_ID,
    "object": "job",
    "state": "queued",
    "url": "/v1/chat/completions",
    "model": _MODEL,
    "custom_id": None,
    "priority": "default",
    "created_ms": _AT_MS,
    "deadline_ms": None,
    "metadata": {},
    "request_id": None,
    "links": {"self": f"/v1/jobs/{_JOB_ID}", "events": f"/v1/jobs/{_JOB_ID}/events"},
}
CHAT: Final[Example] = {
    "id": "chatcmpl-0123456789abcdef01234567",
    "object": "chat.completion",
    "created": _AT_S,
    "model": _MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "They save energy."},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": _USAGE,
}
JOB: Final[Example] = {
    **ACCEPTED,
    "state": "completed",
    "attempt": 1,
    "token_count": 5,
    "started_ms": _AT_MS + 900,
    "first_token_ms": _AT_MS + 1000,
    "finished_ms": _AT_MS + 1400,
    "timings": {"queued_ms": 900, "first_token_ms": 1000, "total_ms": 1400},
    "result": CHAT,
    "usage": _USAGE,
    "error": None,
    "is_dead_letter": False,
    "attempts": [
        {
            "attempt": 1,
            "started_ms": _AT_MS + 900,
            "ended_ms": _AT_MS + 1400,
            "outcome": "completed",
            "resumed_from": 0,
        }
    ],
}
LISTED_JOB: Final[Example] = {name: value for name, value in JOB.items() if name != "result"}
DEAD_LETTER: Final[Example] = {
    **JOB,
    "state": "failed",
    "result": None,
    "error": {"code": "engine_died", "message": "the engine died", "field": ""},
    "is_dead_letter": True,
}
COMPLETION: Final[Example] = {
    "id": "cmpl-0123456789abcdef01234567",
    "object": "text_completion",
    "created": _AT_S,
    "model": _MODEL,
    "choices": [{"index": 0, "text": " hovers.", "finish_reason": "stop", "logprobs": None}],
    "usage": _USAGE,
}
EMBEDDING: Final[Example] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.018, -0.007]}],
    "model": "an-embedding-model",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
MODEL: Final[Example] = {"id": _MODEL, "object": "model", "created": 0, "owned_by": "torpor"}
RESPONSE: Final[Example] = {
    "id": "resp_0123456789abcdef01234567",
    "object": "response",
    "created_at": _AT_S,
    "status": "completed",
    "background": True,
    "model": _MODEL,
    "output": [
        {
            "type": "message",
            "id": "msg_0123456789abcdef01234567",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "They save energy.", "annotations": []},
            ],
        }
    ],
    "usage": {"input_tokens": 12, "output_tokens": 5, "total_tokens": 17},
}
INPUT_ITEM: Final[Example] = {
    "id": "item_0123456789abcdef01234567_0",
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Why is the sky blue?"}],
}
COMPACTION: Final[Example] = {
    "id": "resp_0123456789abcdef01234567",
    "object": "response.compaction",
    "created_at": _AT_S,
    "output": [
        {
            "id": "cmp_0123456789abcdef01234567",
            "type": "compaction",
            "encrypted_content": "eyJzdW1tYXJ5IjoiLi4uIn0=",
        }
    ],
    "usage": {"input_tokens": 12, "output_tokens": 5, "total_tokens": 17},
}
FILE: Final[Example] = {
    "id": "file-0123456789abcdef01234567",
    "object": "file",
    "bytes": 1234,
    "created_at": _AT_S,
    "filename": "lines.jsonl",
    "purpose": "batch",
    "status": "processed",
}
BATCH: Final[Example] = {
    "id": "batch_0123456789abcdef01234567",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": FILE["id"],
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _AT_S,
    "expires_at": _AT_S + 86_400,
    "request_counts": {"total": 50_000, "completed": 1200, "failed": 1},
    "metadata": None,
}
OVERVIEW: Final[Example] = {
    "object": "overview",
    "now_ms": _AT_MS,
    "models": [
        {
            "model": _MODEL,
            "queue": {
                "waiting": {"interactive": 1, "default": 0, "batch": 40},
                "in_delivery": 2,
                "retrying": 0,
                "settled_per_minute": 12.5,
                "expected_wait_s": 196.8,
                "oldest_ms": _AT_MS - 900,
            },
            "replicas": [],
        }
    ],
}
_SPENT: Final = {
    "jobs": 3,
    "input_tokens": 36,
    "output_tokens": 15,
    "gpu_seconds": {"waking": 2.1, "idle": 30.0, "busy": 4.2, "kept": 4.2, "wasted": 0.0},
}
USAGE: Final[Example] = {
    "object": "usage",
    "since_s": 86_400,
    "price_per_gpu_hour": 2.5,
    "gpus_per_replica": 1,
    "total": _SPENT,
    "models": {_MODEL: _SPENT},
    "tenants": {
        "acme": {
            "jobs": 3,
            "input_tokens": 36,
            "output_tokens": 15,
            "gpu_seconds": 4.2,
            "cost": 0.002917,
            "cost_all_in": 0.025208,
        }
    },
}


def listed(entry: Example) -> Example:
    """A page in OpenAI's form."""
    ids = {"first_id": entry.get("id"), "last_id": entry.get("id")}
    return {"object": "list", "data": [entry], **ids, "has_more": False}


def paged(entry: Example) -> Example:
    """A page with a cursor."""
    return {"object": "list", "data": [entry], "next_cursor": None}


def deleted(thing: Example) -> Example:
    """What a DELETE answers."""
    return {"id": thing["id"], "object": thing["object"], "deleted": True}
