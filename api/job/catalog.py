"""The models that are served, and whether a request fits a model's context.

Called by `api.job.submission` for every job, and by `/v1/models`. Must not know HTTP or the store.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tokenizers import Tokenizer

from api.http.errors import ModelNotFound
from api.job.chat_template import ChatTemplate
from eventing.errors import ContextExceeded, InvalidJob
from eventing.job.capability import Capability, asked_of
from eventing.job.job import JobRequest
from eventing.settings import ModelCard

_PIECE_CHARS: Final = 32 * 1024
"""A long text is counted in pieces, so that one far over the limit is refused after the first."""


class Catalog:
    """Model cards by name, with their tokenizers, loaded on first use."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards = {card.name: card for card in cards}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._templates: dict[str, ChatTemplate | None] = {}
        # One thread: counting is CPU work, and a small machine has no core to spare for a second.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="token-count")

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(self._cards.values())

    def card(self, name: str) -> ModelCard | None:
        """The card of a model, or None."""
        return self._cards.get(name)

    async def check(self, request: JobRequest) -> None:
        """Raises `ModelNotFound` (`body.model`), `InvalidJob` naming what the model does not support, or
        `ContextExceeded` naming the field that is too long.

        Counts the content only, without the chat template's tokens: a refusal here is always right, and the engine
        judges the last few tokens.
        """
        card = self._known(request.model)
        _check_can(card, request)
        _check_answer_fits(card, request)
        where, prompts = _prompts(request)
        for prompt in prompts:
            if _floor_bytes(prompt) <= card.context_tokens:
                continue  # a token has at least one byte, so this fits: the usual case costs nothing
            if isinstance(prompt, int):
                raise _too_long(card, where)
            if card.tokenizer_file is not None and await self._is_over(card, prompt):
                raise _too_long(card, where)

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        """The tokens of a chat body's prompt as the engine will see it. Raises `ModelNotFound`, or `InvalidJob` for a
        model or a message that can not be counted here.
        """
        card = self._known(str(body.get("model")))
        if card.tokenizer_file is None:
            raise InvalidJob(f"the tokenizer of {card.name} is not known here", "body.model")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._count_prompt, card, body)

    async def count_texts(self, name: str, texts: Sequence[str]) -> list[int]:
        """The tokens of each text; an estimate, of three bytes each, for a model whose tokenizer is not known here.
        Raises `ModelNotFound`.
        """
        card = self._known(name)
        if card.tokenizer_file is None:
            return [-(-len(text.encode()) // 3) for text in texts]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._count_each, card, texts)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _known(self, name: str) -> ModelCard:
        card = self._cards.get(name)
        if card is None:
            known = ", ".join(self._cards) or "none"
            raise ModelNotFound(f"no such model here; known: {known}", "body.model")
        return card

    async def _is_over(self, card: ModelCard, texts: list[str]) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._count_is_over, card, texts)

    def _count_is_over(self, card: ModelCard, texts: list[str]) -> bool:
        """Runs in the counting thread."""
        return _count_is_over(self._tokenizer(card), texts, card.context_tokens)

    def _count_prompt(self, card: ModelCard, body: Mapping[str, Any]) -> int:
        """Runs in the counting thread."""
        assert card.tokenizer_file is not None  # noqa: S101 (asked by the caller)
        if card.name not in self._templates:
            self._templates[card.name] = ChatTemplate.beside(card.tokenizer_file)
        template = self._templates[card.name]
        if template is None:
            raise InvalidJob(f"{card.name} has no chat template here", "body.model")
        _check_countable(body["messages"])
        functions = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
        prompt = template.render(body["messages"], functions or None)
        return len(self._tokenizer(card).encode(prompt, add_special_tokens=False).ids)

    def _count_each(self, card: ModelCard, texts: Sequence[str]) -> list[int]:
        """Runs in the counting thread."""
        tokenizer = self._tokenizer(card)
        return [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]

    def _tokenizer(self, card: ModelCard) -> Tokenizer:
        tokenizer = self._tokenizers.get(card.name)
        if tokenizer is None:
            tokenizer = Tokenizer.from_file(str(card.tokenizer_file))
            tokenizer.no_truncation()
            self._tokenizers[card.name] = tokenizer
        return tokenizer


def _count_is_over(tokenizer: Tokenizer, texts: list[str], limit: int) -> bool:
    """True when `texts` have more than `limit` tokens.

    Each cut between pieces adds at most one token, so pieces decide clear cases; only a close case is counted
    whole.
    """
    count = cuts = 0
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            count += len(tokenizer.encode(piece, add_special_tokens=False).ids)
            cuts += start > 0
            if count - 4 * cuts > limit:
                return True
    if count <= limit or not cuts:
        return count > limit
    whole = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    return whole > limit


def _check_countable(messages: Iterable[Mapping[str, Any]]) -> None:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            raise InvalidJob(
                "the tokens of an image can only be counted by an engine", "body.messages"
            )


_CAN_NOT: Final = {
    Capability.GENERATE: "answers no prompts: it is one for embeddings or for moderations",
    Capability.EMBED: "makes no embeddings",
    Capability.MODERATE: "judges no texts: moderations need a model with the step `moderate`",
    Capability.IMAGE: "takes no images",
    Capability.AUDIO: "takes no sound",
    Capability.VIDEO: "takes no films",
    Capability.TOOLS: "calls no tools here: its engine runs without --enable-auto-tool-choice and --tool-call-parser",
}


_UNLISTED: Final = frozenset(Capability) - {Capability.MODERATE}


def _check_can(card: ModelCard, request: JobRequest) -> None:
    # Where none are listed the engine judges; but no engine of ours moderates.
    can = _UNLISTED if card.capabilities is None else card.capabilities
    for capability, where in asked_of(request):
        if capability not in can:
            raise InvalidJob(f"{where}: {card.name} {_CAN_NOT[capability]}", where)


def _check_answer_fits(card: ModelCard, request: JobRequest) -> None:
    """Refuses an answer longer than the whole context; the engine shortens others to what the prompt leaves."""
    for name in ("max_completion_tokens", "max_tokens"):
        asked = request.body.get(name)
        if isinstance(asked, int) and asked > card.context_tokens:
            raise ContextExceeded(
                f"body.{name} is {asked}, and the context of {card.name} has {card.context_tokens} "
                "tokens for prompt and answer",
                f"body.{name}",
            )


def _too_long(card: ModelCard, where: str) -> ContextExceeded:
    return ContextExceeded(
        f"{where} is longer than the context of {card.name} ({card.context_tokens} tokens)", where
    )


def _prompts(request: JobRequest) -> tuple[str, list[list[str] | int]]:
    """The field with the prompt, and each prompt as texts or as a number of token ids."""
    match request.url:
        case "/v1/chat/completions":
            return "body.messages", [list(_texts(request.body.get("messages", [])))]
        case "/v1/chat/completions/batch":
            return "body.messages", [list(_texts(chat)) for chat in request.body["messages"]]
        case "/v1/completions":
            return "body.prompt", _plain(request.body.get("prompt"))
        case _:
            return "body.input", _plain(request.body.get("input"))


def _texts(messages: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                    yield part["text"]


def _plain(value: Any) -> list[list[str] | int]:
    if isinstance(value, str):
        return [[value]]
    if not isinstance(value, list):
        return []
    if value and all(isinstance(item, int) for item in value):
        return [len(value)]
    several: list[list[str] | int] = []
    for item in value:
        if isinstance(item, str):
            several.append([item])
        elif isinstance(item, list):
            several.append(len(item))
    return several


def _floor_bytes(prompt: list[str] | int) -> int:
    return prompt if isinstance(prompt, int) else sum(len(text.encode()) for text in prompt)
