"""OpenAI's response bodies, as far as the api guarantees them; other fields come from the engine.

Called by `api.routes.openai`, for the OpenAPI document.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described


class TokenUsage(TypedDict):
    """Tokens as the engine counted them."""

    prompt_tokens: int
    completion_tokens: NotRequired[int]
    total_tokens: int


@described
class AnswerMessage(TypedDict):
    """What the model said."""

    role: Literal["assistant"]
    content: NotRequired[str | None]
    refusal: NotRequired[str | None]
    reasoning: NotRequired[str | None]
    """What it thought before"""
    tool_calls: NotRequired[list[Mapping[str, Any]] | None]


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    finish_reason: NotRequired[str | None]
    logprobs: NotRequired[Mapping[str, Any] | None]


class ChatCompletion(TypedDict):
    """The answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    moderation: NotRequired[dict[str, Any]]
    grounding: NotRequired[dict[str, Any]]
    usage: NotRequired[TokenUsage | None]


class TextChoice(TypedDict):
    """One of `n` texts."""

    index: int
    text: str
    finish_reason: NotRequired[str | None]
    logprobs: NotRequired[Mapping[str, Any] | None]


class Completion(TypedDict):
    """The text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[TokenUsage | None]


@described
class Embedding(TypedDict):
    """One text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or what `encoding_format` asks for"""


class EmbeddingList(TypedDict):
    """A vector for each text."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: NotRequired[TokenUsage | None]


class ModerationResult(TypedDict):
    """What was found in a text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(TypedDict):
    """A result for each text, or one for all parts."""

    id: str
    model: str
    results: list[ModerationResult]


@described
class ModelView(TypedDict):
    """A model that is served, running or at zero."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Tokens of its context"""
    capabilities: list[str] | None
    """What it can: generate, embed, moderate, image, audio, video, tools; null where the engine judges"""


class ModelList(TypedDict):
    """Models, running or at zero."""

    object: Literal["list"]
    data: list[ModelView]
