"""What is refused before it is recorded: unknown models, prompts longer than the context."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from api.http.errors import ModelNotFound
from api.job.catalog import Catalog
from eventing.errors import ContextExceeded, InvalidJob
from eventing.job.capability import Capability
from eventing.job.job import JobRequest
from eventing.settings import ModelCard

CHAT = "/v1/chat/completions"


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A token a word."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def catalog(tokenizer_file: Path | None = None, context: int = 10) -> Catalog:
    return Catalog([ModelCard(name="m", context_tokens=context, tokenizer_file=tokenizer_file)])


def chat(*texts: Any, model: str = "m") -> JobRequest:
    messages = [{"role": "user", "content": text} for text in texts]
    return JobRequest(url=CHAT, body={"model": model, "messages": messages})


async def test_a_model_that_is_not_listed_is_unknown() -> None:
    with pytest.raises(ModelNotFound) as caught:
        await catalog().check(chat("a", model="other"))

    assert caught.value.field == "body.model"


@pytest.mark.parametrize(
    ("texts", "fits"),
    [
        pytest.param(["a " * 10], True, id="exactly the context"),
        pytest.param(["a " * 11], False, id="one token over"),
        pytest.param(["a " * 6, "a " * 5], False, id="messages count together"),
        pytest.param([[{"type": "text", "text": "a " * 11}]], False, id="parts count"),
        pytest.param([[{"type": "image_url", "image_url": {}}]], True, id="pictures do not"),
        pytest.param(["a" * 2_000], True, id="many bytes, one token"),
        pytest.param(["a " * 40_000], False, id="far too long"),
        pytest.param([None], True, id="no content"),
    ],
)
async def test_content_is_counted_in_tokens(
    tokenizer_file: Path, texts: list[Any], fits: bool
) -> None:
    request = chat(*texts)

    if fits:
        await catalog(tokenizer_file).check(request)
        return
    with pytest.raises(ContextExceeded) as caught:
        await catalog(tokenizer_file).check(request)
    assert caught.value.field == "body.messages"


async def test_each_of_several_conversations_has_the_context_for_itself(
    tokenizer_file: Path,
) -> None:
    def chats(*texts: str) -> JobRequest:
        talks = [[{"role": "user", "content": text}] for text in texts]
        return JobRequest(url=f"{CHAT}/batch", body={"model": "m", "messages": talks})

    await catalog(tokenizer_file).check(chats("a " * 6, "a " * 6))
    with pytest.raises(ContextExceeded):
        await catalog(tokenizer_file).check(chats("a", "a " * 11))


async def test_a_text_in_pieces_is_counted_exactly(tokenizer_file: Path) -> None:
    """32 KiB pieces: a cut must not turn a prompt that fits into one that does not."""
    words = 40_000
    await catalog(tokenizer_file, context=words).check(chat("aaa " * words))

    with pytest.raises(ContextExceeded):
        await catalog(tokenizer_file, context=words - 1).check(chat("aaa " * words))


async def test_without_a_tokenizer_texts_are_the_engines_to_judge() -> None:
    await catalog().check(chat("a " * 1000))


@pytest.mark.parametrize(
    ("prompt", "fits"),
    [
        pytest.param(list(range(10)), True, id="ids that fit"),
        pytest.param(list(range(11)), False, id="one id over"),
        pytest.param([list(range(11))], False, id="a list of lists"),
        pytest.param(["a " * 10, "a " * 10], True, id="texts count each for itself"),
        pytest.param(["a", "a " * 11], False, id="one text over"),
    ],
)
async def test_completion_prompts_name_their_field(
    tokenizer_file: Path, prompt: Any, fits: bool
) -> None:
    request = JobRequest(url="/v1/completions", body={"model": "m", "prompt": prompt})

    if fits:
        await catalog(tokenizer_file).check(request)
        return
    with pytest.raises(ContextExceeded) as caught:
        await catalog(tokenizer_file).check(request)
    assert caught.value.field == "body.prompt"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_may_be_as_long_as_the_context_and_no_longer(name: str) -> None:
    """Engines cut what is asked for to what the prompt leaves."""
    catalog = Catalog([ModelCard(name="m", context_tokens=64)])
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    with pytest.raises(ContextExceeded) as caught:
        await catalog.check(JobRequest(url="/v1/chat/completions", body=body | {name: 65}))

    assert caught.value.field == f"body.{name}"
    await catalog.check(JobRequest(url="/v1/chat/completions", body=body | {name: 64}))


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TOOL = {"type": "function", "function": {"name": "look"}}
EMBEDDING = JobRequest(url="/v1/embeddings", body={"model": "m", "input": "a"})


def chat_with(**body: Any) -> JobRequest:
    given = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | body
    return JobRequest(url=CHAT, body=given)


@pytest.mark.parametrize(
    ("request_", "capability", "field"),
    [
        pytest.param(chat("a"), "generate", "body.model", id="a chat"),
        pytest.param(EMBEDDING, "embed", "body.model", id="an embedding"),
        pytest.param(chat([IMAGE]), "image", "body.messages[0].content[0].type", id="an image"),
        pytest.param(
            chat("a", [{"type": "text", "text": "b"}, {"type": "input_audio"}]),
            "audio",
            "body.messages[1].content[1].type",
            id="a sound",
        ),
        pytest.param(
            chat([{"type": "video_url"}]), "video", "body.messages[0].content[0].type", id="a film"
        ),
        pytest.param(chat_with(tools=[TOOL]), "tools", "body.tools", id="tools"),
        pytest.param(
            chat_with(tools=[TOOL], tool_choice="required"), "tools", "body.tools", id="a must"
        ),
    ],
)
async def test_a_missing_capability_of_the_model_is_refused(
    request_: JobRequest, capability: str, field: str
) -> None:
    others = set(Capability) - {Capability(capability)}

    with pytest.raises(InvalidJob) as caught:
        await Catalog([ModelCard(name="m", capabilities=frozenset(others))]).check(request_)

    assert caught.value.field == field
    await Catalog([ModelCard(name="m", capabilities=frozenset(Capability))]).check(request_)
    await Catalog([ModelCard(name="m")]).check(request_)


async def test_tools_that_must_not_be_called_need_no_parser() -> None:
    card = ModelCard(name="m", capabilities=frozenset({Capability.GENERATE}))

    await Catalog([card]).check(chat_with(tools=[TOOL], tool_choice="none"))


async def test_a_refusal_of_tools_names_the_engines_flags() -> None:
    card = ModelCard(name="m", capabilities=frozenset({Capability.GENERATE}))

    with pytest.raises(InvalidJob, match="--enable-auto-tool-choice and --tool-call-parser"):
        await Catalog([card]).check(chat_with(tools=[TOOL]))
