"""Capabilities: what a model supports and what a call needs, so that an impossible call is refused at submit.

Called by the api's catalog for every job, and by the local stack, which describes its model to the api. Pure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from eventing.job.call.moderation import MODERATION_URL
from eventing.job.job import JobRequest


class Capability(StrEnum):
    """Something that a model, or its engine, supports."""

    GENERATE = "generate"  #: chat completions and completions
    EMBED = "embed"  #: embeddings
    MODERATE = "moderate"  #: moderations
    IMAGE = "image"  #: images in messages
    AUDIO = "audio"  #: sound in messages
    VIDEO = "video"  #: films in messages
    TOOLS = "tools"  #: calls of functions, which take a parser of the engine


_GENERATING: Final = ("ForCausalLM", "LMHeadModel")
_MEDIA_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_POOLING_FILES: Final = ("modules.json",)
_MEDIA_WORDS: Final = ("vision", "visual", "image", "img", "audio", "video", "mm_", "speech")
_PARSER: Final = ("--tool-call-parser", "--tool_call_parser")
_CONVERTED: Final = ("--runner", "--convert", "--task")
_OWN_PARSER: Final = ("gpt_oss", "mistral", "mixtral", "pixtral")
"""Model types whose tools an engine may read without a parser (harmony, mistral tokenizers)."""


def capabilities_of(
    config: Mapping[str, Any], files: Collection[str], engine_args: Sequence[str]
) -> frozenset[Capability] | None:
    """What the model of a `config.json`, the names of the files beside it and vLLM's arguments can do; None when
    that is not known. In doubt, the model has the capability.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return None
    given = {word.partition("=")[0] for word in engine_args}
    found = set(Capability) - {Capability.MODERATE}
    if _is_text_alone(config, architectures, files):
        found -= {Capability.IMAGE, Capability.AUDIO, Capability.VIDEO}
    is_pooling = any(name in files for name in _POOLING_FILES)
    if _generates(architectures) and not is_pooling and not given & set(_CONVERTED):
        found.discard(Capability.EMBED)
    if not given & set(_PARSER) and config.get("model_type") not in _OWN_PARSER:
        found.discard(Capability.TOOLS)
    return frozenset(found)


def _generates(architectures: Sequence[Any]) -> bool:
    return all(str(name).endswith(_GENERATING) for name in architectures)


def _is_text_alone(
    config: Mapping[str, Any], architectures: Sequence[Any], files: Collection[str]
) -> bool:
    has_media = any(name in files for name in _MEDIA_FILES) or any(
        word in name for name in config for word in _MEDIA_WORDS
    )
    return _generates(architectures) and not has_media


def asked_of(request: JobRequest) -> Iterator[tuple[Capability, str]]:
    """The capabilities that the request needs, each with the field that needs it."""
    if request.url == "/v1/embeddings":
        yield Capability.EMBED, "body.model"
        return
    if request.url == MODERATION_URL:
        yield Capability.MODERATE, "body.model"
        parts = request.body.get("input")
        yield from _media_of(parts if isinstance(parts, list) else (), "body.input")
        return
    yield Capability.GENERATE, "body.model"
    body = request.body
    if body.get("tools") and body.get("tool_choice") != "none":
        yield Capability.TOOLS, "body.tools"
    match request.url:
        case "/v1/chat/completions":
            yield from _media_in(body.get("messages") or (), "body.messages")
        case "/v1/chat/completions/batch":
            for row, messages in enumerate(body.get("messages") or ()):
                yield from _media_in(messages, f"body.messages[{row}]")


_MEDIA: Final = {
    **dict.fromkeys(("image_url", "image_embeds", "image_pil", "input_image"), Capability.IMAGE),
    **dict.fromkeys(("input_audio", "audio_url", "audio_embeds"), Capability.AUDIO),
    **dict.fromkeys(("video_url", "video_embeds"), Capability.VIDEO),
}


def _media_in(
    messages: Sequence[Mapping[str, Any]], where: str
) -> Iterator[tuple[Capability, str]]:
    for row, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else ()
        yield from _media_of(parts, f"{where}[{row}].content")


def _media_of(parts: Sequence[Any], where: str) -> Iterator[tuple[Capability, str]]:
    for column, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if (asked := _MEDIA.get(str(kind))) is not None:
            yield asked, f"{where}[{column}].type"
