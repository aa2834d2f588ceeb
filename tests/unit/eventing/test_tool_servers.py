"""tools.yaml: what it may say, what is refused by name, and what of it the model is told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.tools.call import EffectClass
from eventing.job.tools.document import load_tools, parse_tools
from eventing.job.tools.server import Approval, ServerKind, ToolDeployment
from steps.tools.listing import body_with_tools, every_tool, function_definition, pinned_server

EXAMPLE = Path(__file__).parents[3] / "examples" / "tools" / "tools.yaml"


def test_a_server_of_which_little_is_said_gets_the_careful_defaults() -> None:
    config = parse_tools({"servers": {"mail": {"url": "https://mail.example.com/mcp"}}})
    mail = config.servers["mail"]

    assert (mail.kind, mail.effect, mail.approval) == (
        ServerKind.MCP,
        EffectClass.ONCE,
        Approval.ALWAYS,
    )
    assert not mail.is_trusted
    assert mail.serves("anyone")
    assert not config.allows_urls("anyone")


def test_a_tenant_sees_its_own_servers() -> None:
    servers = {
        "mail": {"url": "https://a.example", "tenants": ["acme"]},
        "time": {"url": "https://b.example"},
    }
    config = parse_tools({"servers": servers, "urls": {"tenants": ["acme"]}})

    assert set(config.serving("acme")) == {"mail", "time"}
    assert set(config.serving("beta")) == {"time"}
    assert (config.allows_urls("acme"), config.allows_urls("beta")) == (True, False)
    assert set(config.queues) == {"mail", "time", "urls"}


def test_an_image_alone_says_how_a_function_is_deployed() -> None:
    server = parse_tools(
        {"servers": {"render": {"kind": "function", "deploy": {"image": "a.example/render:1"}}}}
    ).servers["render"]

    assert (server.url, server.deployment) == ("", ToolDeployment(image="a.example/render:1"))
    assert server.longest_ms == server.timeout_ms + 60_000  # it may have to start first


def test_a_process_refuses_a_server_that_only_a_cluster_deploys_and_uses_its_address_beside_that(
    tmp_path: Path,
) -> None:
    file, server = tmp_path / "tools.yaml", {"kind": "function", "deploy": {"image": "a/b:1"}}
    file.write_text(json.dumps({"servers": {"render": server}}))
    with pytest.raises(BadRequest, match=r"servers\.render\.url must be set here"):
        load_tools(file)

    file.write_text(json.dumps({"servers": {"render": {**server, "url": "http://127.0.0.1:9"}}}))
    assert load_tools(file).servers["render"].url == "http://127.0.0.1:9"


def test_an_engine_is_asked_to_hold_arguments_to_a_strict_servers_schema() -> None:
    config = load_tools(EXAMPLE)
    functions = {
        label: pinned_server(
            label,
            every_tool(label, (function_definition(server),), server),
            server,
            None,
            origin="",
            mark="",
        )
        for label, server in config.servers.items()
        if server.kind is ServerKind.FUNCTION
    }
    body = body_with_tools({"messages": []}, list(functions.values()))
    strict = {each["function"]["name"]: each["function"].get("strict") for each in body["tools"]}

    assert strict["refund__refund"] is True
    assert strict["dice__dice"] is None


@pytest.mark.parametrize(
    ("server", "field"),
    [
        ({}, "servers.x.url"),
        ({"url": "https://a.example", "effect": "twice"}, "servers.x.effect"),
        ({"url": "https://a.example", "effects": {"get": "twice"}}, "servers.x.effects.get"),
        ({"url": "https://a.example", "credential": "../key"}, "servers.x.credential"),
        ({"url": "https://a.example", "tenants": "acme"}, "servers.x.tenants"),
        ({"url": "https://a.example", "timeout_ms": True}, "servers.x.timeout_ms"),
        ({"url": "https://a.example", "trusted": "yes"}, "servers.x.trusted"),
        ({"url": "https://a.example", "parameters": {"type": "object"}}, "servers.x.parameters"),
        ({"url": "https://a.example", "command": "npx"}, "servers.x.command"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_server_can_not_have_is_named(server: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_tools({"servers": {"x": server}})

    assert raised.value.field == field


@pytest.mark.parametrize("label", ["Mail", "a_b", "x" * 33, "urls", "torpor", "-a"])
def test_a_label_is_one_that_a_models_function_name_can_begin_with(label: str) -> None:
    with pytest.raises(BadRequest, match="label"):
        parse_tools({"servers": {label: {"url": "https://a.example"}}})


@pytest.mark.parametrize(
    ("server", "field"),
    [
        (
            {"kind": "function", "parameters": {"properties": {"n": {"type": "int"}}}},
            "servers.a.parameters.properties.n.type",
        ),
        (
            {"tools": [{"name": "do", "inputSchema": {"required": "n"}}]},
            "servers.a.tools.0.inputSchema.required",
        ),
    ],
    ids=["of a function", "of a tool"],
)
def test_parameters_that_are_no_schema_are_refused_by_their_place(
    tmp_path: Path, server: dict[str, Any], field: str
) -> None:
    file = tmp_path / "tools.yaml"
    file.write_text(json.dumps({"servers": {"a": {"url": "http://a.example/", **server}}}))
    with pytest.raises(BadRequest, match=r"^tools: \S+ must be ") as refused:
        load_tools(file)
    assert refused.value.field == field
    ended = subprocess.run(
        [sys.executable, "-m", "steps"],
        env={**os.environ, "TORPOR_TOOLS_FILE": str(file)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, field in ended.stderr) == (2, True), ended.stderr
