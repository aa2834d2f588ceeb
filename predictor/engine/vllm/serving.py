"""Runs calls on vLLM's own OpenAI layer: Batch lines in, stream chunks out.

Called by `predictor.engine.vllm.engine`. Request types, chat templates, reasoning and tool parsers, structured
output, logprobs and LoRA names are vLLM's; nothing of it is parsed a second time here. Imports vLLM: load it only
where vLLM is used. Must not know HTTP, events or the store.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: F401  (first: vLLM's circular imports)
from vllm.entrypoints.generate.base.protocol import validate_cache_salt
from vllm.entrypoints.launchers.cli_args import resolve_default_chat_template_kwargs
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import process_lora_modules
from vllm.exceptions import VLLMClientError
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer

from predictor.engine.engine import (
    CACHE_SALT,
    PREFIX,
    DecodeStep,
    EngineRequest,
    cache_salt,
    prefix_note,
)
from predictor.engine.vllm.errors import (
    CHAT_BATCH_URL,
    CHAT_URL,
    COMPLETION_URL,
    EMBEDDING_URL,
    bad_fields,
    from_response,
    translate,
)
from predictor.engine.vllm.media import check_media
from predictor.engine.vllm.resume import CURRENT_BUFFER, ResumeBuffer, ResumingClient
from predictor.errors import BadRequest

_UNREADABLE: Final = (AttributeError, IndexError, KeyError, TypeError)
"""What vLLM's validators raise when they read a field before its type is checked (`structured_outputs: true`,
`messages: null`): the caller's error, not ours.
"""


class VllmServing:
    """The endpoints of one engine."""

    def __init__(self, args: Any, client: Any, models: Any, tasks: Sequence[str]) -> None:
        self._models = models
        self._allowed_media = {
            "domains": bool(args.allowed_media_domains),
            "local_path": bool(args.allowed_local_media_path),
        }
        self._calls: dict[str, Callable[[Any], Any]] = {}
        self._types: dict[str, Any] = {}
        if "generate" in tasks:
            chat, completion = _generation(args, client, models)
            self._calls[CHAT_URL] = chat.create_chat_completion
            self._calls[CHAT_BATCH_URL] = chat.create_batch_chat_completion
            self._calls[COMPLETION_URL] = completion.create_completion
            self._types[CHAT_URL] = TypeAdapter(ChatCompletionRequest)
            self._types[CHAT_BATCH_URL] = TypeAdapter(BatchChatCompletionRequest)
            self._types[COMPLETION_URL] = TypeAdapter(CompletionRequest)
        if "embed" in tasks:
            self._calls[EMBEDDING_URL], self._types[EMBEDDING_URL] = _embedding(
                args, client, models, tasks
            )

    @property
    def urls(self) -> Sequence[str]:
        """The endpoints that the model supports."""
        return list(self._types)

    @property
    def model_names(self) -> Sequence[str]:
        """The served names, then those of the LoRA adapters."""
        served = [path.name for path in self._models.base_model_paths]
        return [*served, *self._models.lora_requests]

    def parse(self, request: EngineRequest) -> Any:
        """vLLM's own request object. Raises `BadRequest` naming the field."""
        if request.url not in self._types:
            offered = ", ".join(self._types)
            raise BadRequest(f"this model does not serve {request.url}, only {offered}", "url")
        check_media(request.body, **self._allowed_media)
        body: dict[str, Any] = {**request.body, "request_id": request.request_id}
        if request.url in (CHAT_URL, COMPLETION_URL):
            body |= _stream_fields(request)
        try:
            validate_cache_salt(body.get(CACHE_SALT))
            body[CACHE_SALT] = cache_salt(request.tenant, body.get(CACHE_SALT))
            parsed = self._types[request.url].validate_python(body)
        except ValidationError as error:
            raise bad_fields(error) from error
        except VLLMClientError as error:
            raise translate(error, request) from error
        except _UNREADABLE as error:
            field = _culprit(self._types[request.url], body)
            raise BadRequest(f"{field or 'a field'} has the wrong type", field) from error
        self._check_model(parsed.model)
        return parsed

    def _check_model(self, model: str | None) -> None:
        if model and model not in self.model_names:
            names = ", ".join(self.model_names)
            raise BadRequest(f"no model {model!r} here; there is: {names}", "model")

    async def steps(
        self, request: EngineRequest, prior: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """See `Engine.run`."""
        parsed = self.parse(request)
        queue: asyncio.Queue[DecodeStep | BaseException | None] = asyncio.Queue()
        made: list[int] = list(prior)

        def record(ids: tuple[int, ...]) -> None:
            if request.notes_prefix:
                made.extend(ids)
            queue.put_nowait(DecodeStep(ids, None))

        buffer = ResumeBuffer(prior, record, request.turns)
        task = asyncio.create_task(self._pump(request, parsed, buffer, queue, made))
        try:
            while (step := await queue.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield _with_chunk(step, queue)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task  # the abort has reached the engine when this returns

    async def _pump(
        self,
        request: EngineRequest,
        parsed: Any,
        buffer: ResumeBuffer,
        queue: asyncio.Queue[DecodeStep | BaseException | None],
        made: Sequence[int],
    ) -> None:
        """Run the serving layer to its end, in a task of its own, so that ids flow while it parses."""
        if not (request.url == CHAT_BATCH_URL or getattr(parsed, "use_beam_search", False)):
            CURRENT_BUFFER.set(buffer)  # in those, steps are not tokens of one answer
        try:
            async for chunk in self._chunks(request, parsed):
                if request.notes_prefix and not chunk.get("choices") and buffer.prompt:
                    note = prefix_note(buffer.prompt, made, request.prefix)
                    chunk = {**chunk, PREFIX: note}
                queue.put_nowait(DecodeStep((), chunk))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(translate(buffer.failure or error, request))

    async def _chunks(
        self, request: EngineRequest, parsed: Any
    ) -> AsyncIterator[Mapping[str, Any]]:
        answer = await self._calls[request.url](parsed)
        if isinstance(answer, ErrorResponse):
            raise from_response(answer.error.model_dump(), request)
        if request.url == EMBEDDING_URL:
            yield orjson.loads(answer.body)
            return
        if not getattr(parsed, "stream", False):
            yield orjson.loads(answer.model_dump_json())
            return
        try:
            async for line in answer:
                data = line.removeprefix("data: ").strip()
                if data == "[DONE]":
                    return
                chunk = orjson.loads(data)
                if error := chunk.get("error"):
                    raise from_response(error, request)
                if not request.body.get("return_token_ids"):
                    # With `echo`, vLLM returns them unrequested when it streams, but not in a whole body.
                    for choice in chunk["choices"]:
                        choice.pop("prompt_token_ids", None)
                yield chunk
        finally:
            await answer.aclose()


def _stream_fields(request: EngineRequest) -> Mapping[str, Any]:
    """The body's stream fields. Jobs are streamed, so that they can be read live and continued, unless vLLM cannot
    stream them; a direct call is streamed if its caller asked for it.
    """
    body = request.body
    if request.wants_chunks and (body.get("stream") or not _is_unstreamable(body)):
        options = _stream_options(body.get("stream_options"))
        if request.counts_throughout:
            options = {**options, "continuous_usage_stats": True}
        return {"stream": True, "stream_options": options}
    return {"stream": False, "stream_options": None}


def _is_unstreamable(body: Mapping[str, Any]) -> bool:
    """True for what vLLM refuses to stream, or streams incompletely (`echo`: prompt logprobs)."""
    return body.get("prompt_logprobs") is not None or any(
        body.get(name) for name in ("use_beam_search", "echo")
    )


def _stream_options(asked: Any) -> Mapping[str, Any]:
    """The caller's options, with usage at the end always on."""
    if not isinstance(asked, Mapping) or not asked.get("include_usage"):
        return {"include_usage": True}
    return {**asked, "include_usage": True}


def _culprit(kind: Any, body: Mapping[str, Any]) -> str:
    """The field without which vLLM's validators pass; empty when there is none."""
    for field in body:
        try:
            kind.validate_python({name: value for name, value in body.items() if name != field})
        except _UNREADABLE:
            continue
        except (ValidationError, VLLMClientError):
            return field
        return field
    return ""


def _with_chunk(
    step: DecodeStep, queue: asyncio.Queue[DecodeStep | BaseException | None]
) -> DecodeStep:
    """One step with an id and its chunk, when the chunk is available already (it mostly is)."""
    while step.chunk is None and not queue.empty():
        following = queue.get_nowait()
        if not isinstance(following, DecodeStep):
            queue.put_nowait(following)  # the end marker
            break
        step = DecodeStep(step.token_ids + following.token_ids, following.chunk)
    return step


async def build_serving(args: Any, llm: Any, *, model: str, names: Sequence[str]) -> VllmServing:
    """Build the serving layer over a running `AsyncLLM`, with LoRA adapters and chat template."""
    for name in (OpenAIServingChat.__module__, OpenAIServingCompletion.__module__):
        # They log a traceback for each refused request, values included; we raise it instead.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client = ResumingClient(llm)
    models = OpenAIServingModels(
        engine_client=client,
        base_model_paths=[BaseModelPath(name=name, model_path=model) for name in names],
        lora_modules=process_lora_modules(args.lora_modules, {}),
    )
    await models.init_static_loras()
    return VllmServing(args, client, models, await llm.get_supported_tasks())


def _generation(args: Any, client: Any, models: Any) -> tuple[Any, Any]:
    chat_template = load_chat_template(args.chat_template)
    template_kwargs = resolve_default_chat_template_kwargs(args)
    reasoning_parser = args.reasoning_parser or args.structured_outputs_config.reasoning_parser
    shared = {
        "request_logger": None,  # it logs prompts
        "chat_template": chat_template,
        "chat_template_content_format": args.chat_template_content_format,
        "trust_request_chat_template": args.trust_request_chat_template,
        "enable_auto_tools": args.enable_auto_tool_choice,
        "exclude_tools_when_tool_choice_none": args.exclude_tools_when_tool_choice_none,
        "tool_parser": args.tool_call_parser,
        "tool_strict_level": args.tool_strict_level,
        "reasoning_parser": reasoning_parser,
        "default_chat_template_kwargs": template_kwargs,
    }
    renderer = OnlineRenderer(client.model_config, client.renderer, **shared)
    renderer.warmup()
    chat = OpenAIServingChatBatch(
        client,
        models,
        args.response_role,
        online_renderer=renderer,
        return_tokens_as_token_ids=args.return_tokens_as_token_ids,
        enable_prompt_tokens_details=True,
        enable_per_request_metrics=args.enable_per_request_metrics,
        **shared,
    )
    completion = OpenAIServingCompletion(
        client,
        models,
        online_renderer=renderer,
        request_logger=None,
        return_tokens_as_token_ids=args.return_tokens_as_token_ids,
        enable_prompt_tokens_details=True,
        enable_per_request_metrics=args.enable_per_request_metrics,
    )
    return chat, completion


def _embedding(args: Any, client: Any, models: Any, tasks: Sequence[str]) -> tuple[Any, Any]:
    # Imported only for models that embed: it costs every other cold start some tenths of a second.
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.embed.serving import ServingEmbedding
    from vllm.renderers.chat_utils import ChatTemplateConfig

    serving = ServingEmbedding(
        client,
        models,
        request_logger=None,
        chat_template_config=ChatTemplateConfig(
            chat_template=load_chat_template(args.chat_template),
            chat_template_content_format=args.chat_template_content_format,
            trust_request_chat_template=args.trust_request_chat_template,
        ),
    )
    return serving, TypeAdapter(EmbeddingRequest)
