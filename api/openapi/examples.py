"""What the OpenAPI document shows: one of each kind of body and answer, as the api takes or sends it.

Called by `api.openapi.document`; a test holds each against its schema. Must not know any call.
"""

from collections.abc import Mapping
from typing import Any, Final

from api.openapi.cache_examples import CACHE_EXAMPLES
from api.openapi.operator_examples import OPERATOR_EXAMPLES
from api.openapi.tenant_examples import TENANT_EXAMPLES
from api.openapi.tool_examples import TOOL_EXAMPLES
from api.openapi.vector_store_examples import VECTOR_STORE_EXAMPLES

Example = Mapping[str, Any]

_JOB_ID: Final = "job_0123456789abcdef01234567"
_MODEL: Final = "smollm2-135m-instruct"
_AT_S: Final = 1_764_000_000
_AT_MS: Final = _AT_S * 1000
_USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}

_ACCEPTED: Final[Example] = {
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
_CHAT: Final[Example] = {
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
_STORED_CHAT: Final[Example] = {**_CHAT, "metadata": {"team": "ads"}}
_STORED_MESSAGE: Final[Example] = {
    "id": "chatcmpl-0123456789abcdef01234567-0",
    "role": "user",
    "content": "Why do birds sleep?",
    "content_parts": None,
}
_JOB: Final[Example] = {
    **_ACCEPTED,
    "state": "completed",
    "attempt": 1,
    "token_count": 5,
    "started_ms": _AT_MS + 900,
    "first_token_ms": _AT_MS + 1000,
    "finished_ms": _AT_MS + 1400,
    "timings": {"queued_ms": 900, "first_token_ms": 1000, "total_ms": 1400},
    "result": _CHAT,
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
_LISTED_JOB: Final[Example] = {name: value for name, value in _JOB.items() if name != "result"}
_COMPLETION: Final[Example] = {
    "id": "cmpl-0123456789abcdef01234567",
    "object": "text_completion",
    "created": _AT_S,
    "model": _MODEL,
    "choices": [{"index": 0, "text": " hovers.", "finish_reason": "stop", "logprobs": None}],
    "usage": _USAGE,
}
_EMBEDDING: Final[Example] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.018, -0.007]}],
    "model": "an-embedding-model",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
_MODERATION: Final[Example] = {
    "id": "modr-0123456789abcdef01234567",
    "model": "omni-moderation-latest",
    "results": [
        {
            "flagged": True,
            "categories": {"harassment": True, "violence": False},
            "category_scores": {"harassment": 1.0, "violence": 0.0},
            "category_applied_input_types": {"harassment": ["text"], "violence": ["text"]},
        }
    ],
}
_MODEL_CARD: Final[Example] = {
    "id": _MODEL,
    "object": "model",
    "created": 0,
    "owned_by": "torpor",
    "max_model_len": 2048,
    "capabilities": ["generate", "tools"],
}
_RESPONSE: Final[Example] = {
    "id": "resp_0123456789abcdef01234567",
    "object": "response",
    "created_at": _AT_S,
    "completed_at": _AT_S + 2,
    "status": "completed",
    "background": True,
    "error": None,
    "incomplete_details": None,
    "model": _MODEL,
    "store": True,
    "metadata": {},
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
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 17,
    },
    **{
        "instructions": None,
        "conversation": None,
        "previous_response_id": None,
        "max_output_tokens": None,
    },
    **{"max_tool_calls": None, "parallel_tool_calls": True, "tools": [], "tool_choice": "auto"},
    **{"temperature": 1.0, "top_p": 1.0, "top_logprobs": 0, "truncation": "disabled"},
    **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "prompt_cache_key": None},
    "reasoning": {"effort": None, "summary": None},
    **{"safety_identifier": None, "service_tier": "default", "user": None},
    "text": {"format": {"type": "text"}},
}
_INPUT_ITEM: Final[Example] = {
    "id": "item_0123456789abcdef01234567_0",
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Why is the sky blue?"}],
}
_COMPACTION: Final[Example] = {
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
    "usage": _RESPONSE["usage"],
}
_FILE: Final[Example] = {
    "id": "file-0123456789abcdef01234567",
    "object": "file",
    "bytes": 1234,
    "created_at": _AT_S,
    "filename": "lines.jsonl",
    "purpose": "batch",
    "status": "processed",
    "expires_at": _AT_S + 30 * 86_400,
}
_BATCH: Final[Example] = {
    "id": "batch_0123456789abcdef01234567",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": _FILE["id"],
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _AT_S,
    "expires_at": _AT_S + 86_400,
    **{"in_progress_at": _AT_S + 2, "finalizing_at": None, "completed_at": None, "failed_at": None},
    **{"expired_at": None, "cancelling_at": None, "cancelled_at": None},
    "model": _MODEL,
    "usage": {
        "input_tokens": 14_400,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 6000,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 20_400,
    },
    "request_counts": {"total": 50_000, "completed": 1200, "failed": 1},
    "metadata": None,
}
_LINE: Final[Example] = {
    "url": "/v1/chat/completions",
    "body": {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "Why do hummingbirds sleep so deeply?"}],
        "max_tokens": 64,
    },
}
_RECEIVER: Final[Example] = {
    "name": "orders",
    "url": "https://hooks.example.com/torpor",
    "event_types": ["response.completed", "response.failed"],
}
_ENDPOINT: Final[Example] = {
    **_RECEIVER,
    "id": "we_0123456789abcdef01234567",
    "object": "webhook_endpoint",
    "created_at": _AT_S,
    "updated_at": _AT_S,
    "signing_secret_hint": "whsec_...9Zk=",
    "switched_off": None,
}
_DELIVERY: Final[Example] = {
    "id": "wh_0123456789abcdef0123456789abcdef",
    "object": "webhook_delivery",
    "endpoint": _ENDPOINT["id"],
    "url": _RECEIVER["url"],
    "type": "response.completed",
    "data": {"id": "resp_0123456789abcdef01234567"},
    "state": "delivered",
    "created_ms": _AT_MS,
    "tries": [
        {"at_ms": _AT_MS + 100, "status": 204, "error": None, "duration_ms": 35, "next_ms": None}
    ],
}
_CONVERSATION: Final[Example] = {
    "id": "conv_0123456789abcdef01234567",
    "object": "conversation",
    "created_at": _AT_S,
    "metadata": {"topic": "birds"},
}
_ITEM: Final[Example] = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Why do birds sleep?"}],
}
_NAMED_ITEM: Final[Example] = {
    **_ITEM,
    "id": "msg_0123456789abcdef01234567",
    "status": "completed",
}
FILE_LINE: Final = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"smollm2-135m-instruct", "messages": [{"role": "user", "content": "Say hello."}]}}'
)
CHAT_CHUNK: Final = (
    '{"id":"chatcmpl-0123456789abcdef01234567","object":"chat.completion.chunk",'
    f'"created":{_AT_S},"model":"{_MODEL}",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"}}]}'
)
TEXT_CHUNK: Final = (
    '{"id":"cmpl-0123456789abcdef01234567","object":"text_completion",'
    f'"created":{_AT_S},"model":"{_MODEL}","choices":[{{"index":0,"text":" hovers"}}]}}'
)


def _listed(entry: Example) -> Example:
    ids = {"first_id": entry.get("id"), "last_id": entry.get("id")}
    return {"object": "list", "data": [entry], **ids, "has_more": False}


EXAMPLES: Final[Mapping[str, Example]] = {
    "AcceptedJob": _ACCEPTED,
    "Batch": _BATCH,
    "BatchList": _listed(_BATCH),
    "BatchRequest": {
        "input_file_id": _FILE["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "ChatBatchRequest": {
        "model": _MODEL,
        "messages": [
            [{"role": "user", "content": "Say hello."}],
            [{"role": "user", "content": "Say bye."}],
        ],
    },
    "ChatCompletion": _CHAT,
    "ChatCompletionRequest": {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
    },
    "CloudEvent": {
        "specversion": "1.0",
        "id": "order-17",
        "source": "/my/shop",
        "type": "dev.torpor.inference.requested.v1",
        "datacontenttype": "application/json",
        "data": _LINE,
    },
    "Compaction": _COMPACTION,
    "CompactionRequest": {"model": _MODEL, "input": "We agreed to launch on Tuesday."},
    "Completion": _COMPLETION,
    "CompletionRequest": {"model": _MODEL, "prompt": "A hummingbird", "max_tokens": 16},
    "Deleted": {"id": _JOB_ID, "object": "job", "deleted": True},
    "EmbeddingList": _EMBEDDING,
    "EmbeddingRequest": {"model": "an-embedding-model", "input": ["a text", "another"]},
    "Moderation": _MODERATION,
    "ModerationRequest": {"model": "omni-moderation-latest", "input": "a text"},
    "EventTypeList": {"object": "list", "data": ["response.completed", "batch.completed"]},
    "File": _FILE,
    "FileList": _listed(_FILE),
    "FileUpload": {"file": FILE_LINE, "purpose": "batch"},
    "InputTokens": {"object": "response.input_tokens", "input_tokens": 12},
    "ItemList": _listed(_INPUT_ITEM),
    "Result": _CHAT,
    "CompletionList": _listed(_STORED_CHAT),
    "StoredChatCompletion": _STORED_CHAT,
    "StoredCompletionUpdate": {"metadata": {"team": "billing"}},
    "MessageList": _listed(_STORED_MESSAGE),
    "Conversation": _CONVERSATION,
    "ConversationRequest": {"items": [_ITEM], "metadata": {"topic": "birds"}},
    "ConversationUpdate": {"metadata": {"topic": "sleep"}},
    "ConversationItem": _NAMED_ITEM,
    "ConversationItemList": _listed(_NAMED_ITEM),
    "ConversationItemsRequest": {"items": [_ITEM]},
    "Job": _JOB,
    "JobList": {"object": "list", "data": [_LISTED_JOB], "next_cursor": None},
    "Invocation": {"model": _MODEL, "prompt": "A hummingbird"},
    "JobRequest": _LINE,
    "Model": _MODEL_CARD,
    "ModelList": {"object": "list", "data": [_MODEL_CARD]},
    "OpenAIError": {
        "error": {
            "message": "temperature must be a number of at least 0",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_job",
        }
    },
    "Problem": {
        "type": "urn:torpor:problem:invalid_job",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "priority must be one of interactive, default, batch",
        "code": "invalid_job",
        "field": "priority",
    },
    "RedriveRequest": {**_LINE, "body": {**_LINE["body"], "max_tokens": 32}},
    "Redriven": {"redriven": [_JOB_ID], "skipped": [], "has_more": False, "next_cursor": None},
    "Response": _RESPONSE,
    "ResponseRequest": {"model": _MODEL, "input": "Why is the sky blue?", "background": True},
    "RotateSecretRequest": {"keep_old_secret_active_for_24_hours": True},
    "WebhookDelivery": _DELIVERY,
    "WebhookDeliveryList": {"object": "list", "data": [_DELIVERY], "next_before": None},
    "WebhookEndpoint": _ENDPOINT,
    "WebhookEndpointList": _listed(_ENDPOINT),
    "WebhookEndpointRequest": _RECEIVER,
    "WebhookEndpointUpdate": {"event_types": ["response.failed"]},
    "WebhookTest": {
        "object": "webhook_endpoint.test",
        "event_type": "response.completed",
        "status_code": 204,
        "success": True,
        "webhook_endpoint_id": _ENDPOINT["id"],
    },
    "WebhookTestRequest": {"event_type": "response.completed"},
    **VECTOR_STORE_EXAMPLES,
    **CACHE_EXAMPLES,
    **TOOL_EXAMPLES,
    **OPERATOR_EXAMPLES,
    **TENANT_EXAMPLES,
}
