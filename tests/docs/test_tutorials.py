"""The tutorials, followed word by word: each block of code is run in order and prints what the page says.

A page's address is replaced by that of a stack that the test starts as a user would (`torpor up`), with the test
engine; `own-model.md` runs the real one. A block behind a comment «not run by the test» starts a stack: left out.
"""

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stack import LocalStack

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
BLOCK = re.compile(
    r"(?P<skip><!-- not run by the test[^>]*-->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of code and what the page says it prints; None where the page says nothing."""

    kind: str
    text: str
    expected: str | None


def blocks(page: str) -> Iterator[Block]:
    found = list(BLOCK.finditer((PAGES / page).read_text(encoding="utf-8")))
    for at, block in enumerate(found):
        if block["skip"] or block["kind"] == "text":
            continue
        after = found[at + 1] if at + 1 < len(found) else None
        says = after["text"] if after is not None and after["kind"] == "text" else None
        yield Block(block["kind"], block["text"], says)


def matches(expected: str, printed: str) -> bool:
    """`...` alone on a line stands for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in expected.splitlines()
    )
    return re.fullmatch(pattern, printed if printed.endswith("\n") else printed + "\n") is not None


class Reader:
    """Somebody who types what the page says: one Python session, one shell."""

    def __init__(self, folder: Path, address: str, replaced: dict[str, str] | None = None) -> None:
        self._replaced = {"http://127.0.0.1:8000": address} | (replaced or {})
        self._names: dict[str, Any] = {"__name__": "__main__"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate()

    def type(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            text = block.text
            for old, new in self._replaced.items():
                text = text.replace(old, new)
            printed = self._python(text) if block.kind == "python" else self._sh(text)
            if block.expected is not None:
                assert matches(block.expected, printed), f"{text}\nprinted:\n{printed}"

    def _python(self, text: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "tutorial", "exec"), self._names)
        return out.getvalue()

    def _sh(self, text: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{text}\necho end of block\n")
        self._shell.stdin.flush()
        return "".join(iter(self._shell.stdout.readline, "end of block\n"))


@contextlib.contextmanager
def stack(folder: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """A running stack; the address of its api."""
    running = LocalStack(folder / "data", *flags, env=env).start()
    try:
        yield running.addresses["api"]
    finally:
        running.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_that_types_the_installed_commands_says_where_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = [block["text"] for block in BLOCK.finditer(text) if block["kind"] == "sh"]
    if any(re.search(r"^(torpor|python) |\$\(python ", each, re.MULTILINE) for each in typed):
        assert "PATH" in text


def test_my_first_job(tmp_path: Path) -> None:
    with stack(tmp_path) as api, Reader(tmp_path, api) as reader:
        reader.type(blocks("first-job.md"))


def test_a_webhook_behind_it(tmp_path: Path) -> None:
    port = free_port()
    receiver = {"127.0.0.1:9000": f"127.0.0.1:{port}", '"127.0.0.1", 9000': f'"127.0.0.1", {port}'}
    allowed = {"TORPOR_WEBHOOK_ALLOW": '["127.0.0.0/8"]'}

    with stack(tmp_path, env=allowed) as api, Reader(tmp_path, api, receiver) as reader:
        reader.type(blocks("webhook.md"))


def test_ask_your_own_files(tmp_path: Path) -> None:
    with stack(tmp_path) as api, Reader(tmp_path, api) as reader:
        reader.type(blocks("ask-files.md"))


def skipped(page: str) -> list[str]:
    """The blocks that start a stack."""
    found = BLOCK.finditer((PAGES / page).read_text(encoding="utf-8"))
    return [block["text"] for block in found if block["skip"]]


def test_a_local_model_first_a_provider_when_it_must(tmp_path: Path) -> None:
    """The variables and flags are those of the page; the small model is the test engine."""
    page, port = "local-first.md", free_port()
    provider, own = skipped(page)
    (plans, *rest) = blocks(page)
    with Reader(tmp_path, "") as reader:
        reader.type([plans])

    far = LocalStack(tmp_path / ".provider", *flags_of(provider)).start()
    places = {
        "http://127.0.0.1:9000": far.addresses["api"],
        "http://127.0.0.1:8000": f"http://127.0.0.1:{port}",
        "small=smollm2-135m-instruct": "small=seeded",
    }
    for old, new in places.items():
        own = own.replace(old, new)
    variables = dict(re.findall(r"^export (\w+)='(.*)'$", own, re.MULTILINE))
    flags = [*flags_of(own), "--port", str(port)]
    flags[flags.index("pipelines.yaml")] = str(tmp_path / "pipelines.yaml")
    try:
        with stack(tmp_path, *flags, env=variables) as api, Reader(tmp_path, api) as reader:
            reader.type(rest)
            said = subprocess.run(
                [sys.executable, ROOT / "examples" / "local_first.py"],
                capture_output=True,
                text=True,
                timeout=120,
                env=os.environ | {"TORPOR_API_URL": api},
            )
    finally:
        far.stop()
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert said.stderr == "answered by small: short and plain\n"


def flags_of(text: str) -> list[str]:
    """The flags of the `torpor up` in a block, without those that the test sets itself."""
    (line,) = re.findall(r"^torpor up (.*)$", text, re.MULTILINE)
    words = shlex.split(line)
    for name in ("--port", "--broker-port", "--data-dir"):
        if name in words:
            at = words.index(name)
            del words[at : at + 2]
    return words


def test_keys_for_two_teams(tmp_path: Path) -> None:
    make_keys, *rest = blocks("two-teams.md")
    variables = {
        "TORPOR_KEYS_SOURCE": str(tmp_path / "keys.json"),
        "TORPOR_TENANT_LIMITS": '{"bees": {"requests_per_minute": 3}}',
    }
    with Reader(tmp_path, "") as reader:
        reader.type([make_keys])

    with stack(tmp_path, env=variables) as api, Reader(tmp_path, api) as reader:
        reader.type(rest)


@pytest.mark.real_engine
@pytest.mark.timeout(300)
def test_a_model_of_my_own(tmp_path: Path) -> None:
    find_folder, *rest = blocks("own-model.md")
    (tmp_path / ".torpor").mkdir()
    (tmp_path / ".torpor" / "models").symlink_to(ROOT / ".torpor" / "models")
    (folder,) = {path.parent for path in (ROOT / ".torpor" / "models").glob("*/*.safetensors")}
    flags = ("--engine", "vllm", "--model", str(folder), "--engine-args", "--max-model-len 1024")
    with Reader(tmp_path, "") as reader:
        reader.type([find_folder])

    with stack(tmp_path, *flags) as api, Reader(tmp_path, api) as reader:
        reader.type(rest)
