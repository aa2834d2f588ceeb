"""The `torpor` command: help, completion, and errors in one line."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer

from torpor.cli import app
from torpor.cli.catalog import COMMANDS
from torpor.cli.stack.up import key_command
from torpor.local.settings import StackSettings

TORPOR = str(Path(sys.executable).parent / "torpor")
HEAVY = ("aiohttp", "pydantic_settings", "kubernetes", "redis", "fastapi", "uvicorn", "yaml")
TEXTS = {
    "--api": "http://[",
    "--broker": "::/",
    "--priority": "soon",
    "--state": "asleep",
    "--since": "soon",
    "--expires-after": "-5s",
    "--p95-wait": "soon",
    "--cache-ttl": "soon",
    "--json-body": "{",
    "--image": "words.txt",
    "--metadata": "no pair",
    "--redis-url": "foo://x",
    "--policy": "guess",
    "--clients": "deaf:1",
    "--trace": "/nowhere/trace.csv",
    "--jobs": "/nowhere/jobs.jsonl",
    "--request": "/nowhere/line.json",
    "--engine": "steam",
    "--manifest": "/nowhere/manifest.yaml",
    "--by": "steam",
    "--fallback-after": "soon",
    "--content": "{",
}
"""A wrong value for each option whose values are not numbers and not a fixed choice."""
FREE = {
    "--model", "--system", "--webhook", "--idempotency-key", "--search", "--cursor", "--data-dir",
    "--name", "--scope", "--file", "--tenant", "--purpose", "--output", "--endpoint", "--event",
    "--cluster", "--namespace", "--context", "--key", "--gpu-metrics", "--json", "--html", "--prompt",
    "--image", "--model-uri", "--prometheus", "--window", "--folder", "--host", "--models-dir",
    "--reason", "--it-ran",
}  # fmt: skip
SETTINGS_OF_TEXT = {"--served-model-name", "--engine-args"}
"""Options that take any text: what is wrong with it only the api, or a cluster, can say."""


def leaves() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by the words that call it."""
    root = typer.main.get_command(app.assembled())
    todo = [((), root)]
    while todo:
        words, command = todo.pop()
        inner = getattr(command, "commands", {})
        todo += [((*words, name), each) for name, each in inner.items()]
        if not inner or words == ("jobs",):
            yield words, command


def wrong_values() -> Iterator[tuple[str, ...]]:
    """A command line for every option that can be wrong."""
    for words, command in leaves():
        needed = ["x" for p in command.params if p.param_type_name == "argument" and p.required]
        for option in command.params:
            flag = max(option.opts, key=len)
            if option.param_type_name == "argument" or getattr(option, "is_flag", False):
                continue
            kind = option.type_descriptor.annotation
            is_typed = kind in (int, float) or (isinstance(kind, type) and issubclass(kind, Enum))
            is_setting = words == ("up",) and flag not in FREE | SETTINGS_OF_TEXT
            if words == ("deploy",) and flag == "--image":
                continue  # an image of containers: only the cluster can say
            if is_typed or is_setting or flag in TEXTS:
                value = "steam" if is_typed or is_setting else TEXTS[flag]
                yield (*words, *needed, flag, TEXTS.get(flag, value) if not is_typed else value)
            else:
                assert flag in FREE | SETTINGS_OF_TEXT, (
                    f"{' '.join(words)} {flag}: say what is wrong for it"
                )


def test_every_flag_of_the_reference_is_tried_or_takes_any_text() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/cli.md").read_text()
    listed = {
        (heading.strip("`"), option)
        for heading, rows in re.findall(r"^## (`[^`]+`)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        for cell in re.findall(r"^\| `([^`]+)` \|", rows, re.M)
        for option in cell.split(", ")
        if option.startswith("--")
    }
    known, tried = set(), {words[-2] for words in wrong_values()}
    for words, command in leaves():
        for option in command.params:
            flag = max(option.opts, key=len)
            if option.param_type_name != "argument":
                assert flag in tried | FREE | SETTINGS_OF_TEXT or option.is_flag, flag
                names = [*option.opts, *option.secondary_opts]
                known |= {(" ".join(["torpor", *words]), name) for name in names}

    assert listed
    assert listed <= known


def said(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[int, str]:
    """Exit code and standard error of a command line."""
    monkeypatch.setattr(sys, "argv", ["torpor", *words])
    code = 0
    try:
        app.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("words", list(wrong_values()), ids=" ".join)
def test_a_wrong_value_is_one_line_and_exit_2(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)

    code, line = said(monkeypatch, capsys, *words)

    assert code == 2, line
    assert line.startswith("torpor: ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, f in StackSettings.model_fields.items()
        if f.annotation not in (str, Path, tuple[str, ...])
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"TORPOR_{name.upper()}", "steam")

    code, line = said(monkeypatch, capsys, "up", "--data-dir", "/proc/nowhere")

    assert code == 2, line
    assert line.count("\n") == 1
    assert f"--{name.replace('_', '-')}" in line


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["sbmit"], "submit"),
        (["submit", "--max-token", "3"], "--max-tokens"),
        (["up", "--min-replicas", "3", "--max-replicas", "1"], "--max-replicas 1"),
        (["up", "--engine-args", "--port 9"], "--port"),
        (["up", "--engine-args", "'"], "--engine-args"),
        (["scale", "thinker"], "--min"),
        (["dead-letters", "redrive"], "--all"),
        (["simulate"], "--profile"),
    ],
)
def test_contradicting_options_name_the_right_ones(
    words: list[str],
    meant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, line = said(monkeypatch, capsys, *words)

    assert code == 2, line
    assert line.count("\n") == 1
    assert meant in line


def test_where_nothing_was_rendered_the_doctor_says_what_renders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    code, line = said(monkeypatch, capsys, "doctor")

    assert code != 0
    assert "no manifests/overlays/queue here: `torpor render`" in line


def test_a_wrong_lifetime_of_kept_answers_is_said_before_a_plan_is_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = said(monkeypatch, capsys, "plan", "--profile", "steady", "--cache-ttl", "soon")

    assert (code, line) == (
        2,
        "torpor: --cache-ttl: 'soon' is no duration; write it as 30s, 2m or 1h\n",
    )


@pytest.mark.parametrize("words", [["jobs"], ["load", "--model", "m"]], ids=" ".join)
def test_a_key_that_no_header_can_carry_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("hunter\n2", "hunter 2", "hünter2"):
        monkeypatch.setenv("TORPOR_API_KEY", key)
        code, line = said(monkeypatch, capsys, *words, "--api", "http://127.0.0.1:9")

        assert code == 2, line
        assert line.count("\n") == 1
        assert "key holds" in line
        assert key not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TORPOR_REDIS_URL", "redis://:hunter2#x@127.0.0.1:6379/0"),
        ("TORPOR_API_URL", "http://user:hunter2#x@127.0.0.1"),
        ("TORPOR_API_URL", "http://user:hunter2@127.0.0.1"),
        ("TORPOR_API_URL", "http://127.0.0.1 :80"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    words = ["keys", "list"] if name == "TORPOR_REDIS_URL" else ["jobs"]

    code, line = said(monkeypatch, capsys, *words)

    assert code == 2, line
    assert line.count("\n") == 1
    assert "hunter2" not in line


def test_a_folder_without_a_stack_is_never_answered_by_another_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (["jobs"], ["submit", "hi"], ["top", "--once"], ["models"], ["status"]):
        code, line = said(monkeypatch, capsys, *words, "--data-dir", str(tmp_path))

        assert code == 1, words
        assert f"no stack runs on {tmp_path}" in line


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_line_in_the_list_is_the_commands_own(name: str) -> None:
    command = app._loaded(COMMANDS[name])
    if isinstance(command, typer.Typer):
        return  # a group has no function of its own
    assert (command.__doc__ or "").split("\n\n")[0].split() == COMMANDS[name].summary.split()


@pytest.mark.parametrize(("words", "command"), list(leaves()), ids=lambda each: str(each)[:40])
def test_every_help_shows_how_it_is_used(words: tuple[str, ...], command: Any) -> None:
    assert f"torpor {' '.join(words)}" in command.epilog


@pytest.mark.parametrize(
    "words",
    [[], ["submit"], ["jobs"], ["watch"], ["chat"], ["status"], ["logs"], ["down"], ["batch"]],
    ids=" ".join,
)
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    code = (
        "import sys; from torpor.cli import main; sys.argv = ['torpor', *sys.argv[1:], '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )

    shown = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)

    assert "Usage: torpor" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "heavy: []"


def test_tab_completes_commands_and_the_options_of_one() -> None:
    def completed(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        env = os.environ | {"_TORPOR_COMPLETE": "complete_bash"} | words
        shown = subprocess.run([TORPOR], capture_output=True, text=True, env=env)
        return shown.stdout.split()

    assert completed("torpor dead") == ["dead-letters"]
    assert "--max-tokens" in completed("torpor submit --max")
    assert completed("torpor keys ro") == ["rotate"]


def test_the_version_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["torpor", "--version"])

    app.main()

    assert capsys.readouterr().out.startswith("torpor")


@pytest.mark.parametrize("words", [["up"], ["down"], ["up", "--detach"]], ids=" ".join)
def test_elsewhere_than_on_linux_a_stack_is_refused_in_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    code, line = said(monkeypatch, capsys, *words)

    assert code == 1
    assert line.count("\n") == 1
    assert "WSL 2 or a Linux VM" in line


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("a: {steps: [retreive]}", "a.steps: retreive is no step"),
        ("a: {steps: [{step: memory, settings: {window_token: 5}}]}", "window_token is not"),
        ("b: {cache: {exact: {}}}", "b is none of the models that are served: a"),
        ("auto: {steps: [{step: route, settings: {tiers: 5}}]}", "route: tiers must be a list"),
    ],
    ids=["step", "setting", "model", "tiers"],
)
def test_plans_that_can_not_run_are_refused_before_anything_starts(
    document: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file := tmp_path / "pipelines.yaml").write_text(document)
    where = ["--pipelines", str(file), "--data-dir", str(tmp_path / "data")]

    code, line = said(monkeypatch, capsys, "up", "--model", "a=seeded", *where)

    assert code == 2
    assert line.count("\n") == 1
    assert words in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("redis", "torpor keys create TENANT --data-dir d"),
        ("keys.json", "torpor keys create TENANT --file keys.json"),
    ],
)
def test_a_stack_says_how_a_key_is_made_that_it_accepts(source: str, command: str) -> None:
    assert key_command(source, " --data-dir d") == command


def test_the_clients_commands_need_nothing_of_linux() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; sys.modules['resource'] = None\n"
        "import torpor.client, torpor.cli.client, torpor.cli.job.submit, torpor.cli.service.batch"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
