"""A model's chat template gives the text that transformers, and so the engine, makes of a conversation."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from api.job.chat_template import ChatTemplate
from eventing.errors import InvalidJob

CHATML = """
{%- for message in messages %}
    {% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
TOOLS = """
{{- bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}
{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.arguments.city | upper }}{% endfor %}
{%- continue %}{% endif %}
{{- message.role }}: {{ message.content | trim }}{{ eos_token }}
{% endfor %}
"""
DATED = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": 'Be <brief> & "kind", für alle'},
    {"role": "user", "content": "Weather?"},
]
CALL = {"name": "look", "arguments": '{"city": "Bern"}'}
CALLED = [
    *TALK,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": CALL}]},
]
FUNCTION = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("source", "messages", "tools"),
    [
        pytest.param(CHATML, TALK, None, id="chatml"),
        pytest.param(CHATML, TALK[1:], None, id="a default system message"),
        pytest.param(TOOLS, TALK, [FUNCTION], id="tools"),
        pytest.param(DATED, TALK, None, id="a date, and json"),
    ],
)
def test_a_template_renders_as_transformers_does(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}

    rendered = ChatTemplate(source, tokens).render(messages, tools)

    expected, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=True, **tokens
    )
    assert rendered == expected[0]


def test_arguments_of_calls_are_objects_as_templates_expect() -> None:
    assert "BERN" in ChatTemplate(TOOLS, {"bos_token": "", "eos_token": ""}).render(CALLED, None)


def test_parts_of_text_are_one_text_a_line_each() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    rendered = ChatTemplate(CHATML, {}).render([{"role": "user", "content": parts}], None)

    assert "user\na\nb<|im_end|>" in rendered


def test_messages_that_the_template_refuses_are_the_callers_fault() -> None:
    with pytest.raises(InvalidJob, match="user first") as refusal:
        ChatTemplate(STRICT, {}).render(TALK, None)

    assert refusal.value.field == "body.messages"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_is_found_beside_the_tokenizer(tmp_path: Path, place: str) -> None:
    text = "x{{ eos_token }}"
    config: dict[str, Any] = {"eos_token": {"content": "</s>"}}
    if place == "chat_template.jinja":
        (tmp_path / place).write_text(text)
    else:
        config["chat_template"] = text
    (tmp_path / "tokenizer_config.json").write_bytes(orjson.dumps(config))

    found = ChatTemplate.beside(tmp_path / "tokenizer.json")

    assert found is not None
    assert found.render(TALK, None) == "x</s>"


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.beside(tmp_path / "tokenizer.json") is None
