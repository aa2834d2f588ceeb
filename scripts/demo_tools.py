"""`make demo-tools`: one job that calls tools, from zero, with a person's approval while the predictor is asleep.

Starts the example tools and a stack in this process, with the real engine. The model is small and calls nothing
sensible by itself, so each question forces the tool that it needs; the arguments are the model's.
"""

import argparse
import asyncio
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console

from eventing.telemetry import log
from torpor.cli.flags import build
from torpor.cli.options import DEFAULT_DATA_DIR
from torpor.client import AsyncClient, Job, TorporError
from torpor.local.engine_kind import EngineKind
from torpor.local.settings import StackSettings
from torpor.local.stack import Stack

EXAMPLES: Final = Path(__file__).parents[1] / "examples" / "tools"
ORDERS: Final = ("A7", "B12", "C3")
_CALLS: Final = "--enable-auto-tool-choice --tool-call-parser hermes"
_ASLEEP_S: Final = 60.0
_CALLED_S: Final = 600.0
screen = Console(stderr=True, highlight=False)


def main() -> int:
    """0 when both jobs ended with an answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=list(EngineKind), default=EngineKind.VLLM)
    parser.add_argument("--answer", choices=("ask", "approve", "deny"), default="ask")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-tools-") as temporary:
        folder = Path(temporary)
        with tools(folder) as file:
            return asyncio.run(demonstrate(file, folder, EngineKind(flags.engine), flags.answer))


@contextmanager
def tools(folder: Path) -> Iterator[Path]:
    """The example tools, listening; gives their `tools.yaml`."""
    commands = {
        "weather": ["mcp_weather.py", str(_free_port())],
        "refund": ["function_refund.py", str(folder / "ledger.db"), str(_free_port())],
    }
    running = {label: _started(command) for label, command in commands.items()}
    try:
        document = yaml.safe_load((EXAMPLES / "tools.yaml").read_text())
        servers = {label: document["servers"][label] for label in commands}
        for label, process in running.items():
            listening = process.stdout.readline() if process.stdout else ""
            servers[label]["url"] = listening.split()[-1]
            screen.print(f"[bold]{label}[/] listens on {servers[label]['url']}")
        # One of three orders, so that the smallest model asks for one that is there.
        servers["refund"]["parameters"]["properties"] = {
            "order_id": {"enum": list(ORDERS)},
            "amount": {"enum": [12.5, 20]},
        }
        file = folder / "tools.yaml"
        file.write_text(yaml.safe_dump({"servers": servers}))
        yield file
    finally:
        for process in running.values():
            process.terminate()
            process.wait(10)


def _started(command: list[str]) -> "subprocess.Popen[str]":
    own = [sys.executable, *command]
    # In a session of its own: Ctrl-C in the terminal is for the demo, which ends the tools itself.
    return subprocess.Popen(  # noqa: S603
        own, cwd=EXAMPLES, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def demonstrate(file: Path, folder: Path, engine: EngineKind, answer: str) -> int:
    """Run the stack and the two jobs on it."""
    settings = build(
        StackSettings,
        port=0,
        broker_port=0,
        data_dir=DEFAULT_DATA_DIR / "demo-tools",
        engine=engine,
        engine_args="" if engine is EngineKind.SEEDED else _CALLS,
        tools_file=file,
        time_scale=10,
        log_level="ERROR",
    )
    log.configure("stack", level=settings.log_level)
    stack = Stack(settings, lambda text: screen.print(f"[dim]· {text}[/]"))
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()

    def interrupt() -> None:
        if interrupted.is_set():
            stack.stop()  # the second time: at once
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    running = asyncio.create_task(stack.run())
    story = asyncio.create_task(_story(stack, folder, answer))
    stopping = asyncio.create_task(interrupted.wait())
    await asyncio.wait({running, story, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    story.cancel()  # before the stack, whose end would be told as a lost api
    await asyncio.gather(story, return_exceptions=True)
    stack.stop()
    await running
    if story.cancelled():
        screen.print("stopped: no process is left")
        return 130
    try:
        return story.result()
    except (TorporError, TimeoutError) as error:
        screen.print(f"[red]it did not work[/]: {error or 'the job took too long'}")
        return 1


async def _story(stack: Stack, folder: Path, answer: str) -> int:
    await stack.up.wait()
    async with AsyncClient(stack.addresses.api) as api:
        weather = await _ask(
            stack, api, "What is the weather in Oslo?", "weather", "forecast", answer
        )
        refund = await _ask(
            stack, api, "Please pay back order A7, it was 12.50.", "refund", "refund", answer
        )
    screen.print(f"[bold]in the ledger[/]: {_ledger(folder)}")
    return 0 if weather.state == refund.state == "completed" else 1


async def _ask(
    stack: Stack, api: AsyncClient, question: str, label: str, tool: str, answer: str
) -> Job:
    """One job, to its end."""
    screen.rule(question)
    screen.print(f"replicas: {stack.ready}")
    body: dict[str, Any] = {
        "tools": [{"type": "mcp", "server_label": label, "require_approval": "never"}],
        "tool_choice": {"type": "mcp", "server_label": label, "name": tool},
        "max_tokens": 160,
        "temperature": 0,
    }
    if stack.settings.engine is EngineKind.SEEDED:
        arguments = {"city": "Oslo"} if label == "weather" else {"order_id": "A7", "amount": 12.5}
        calls = [{"name": f"{label}__{tool}", "arguments": arguments}]
        body["seeded"] = {"turns": [{"calls": calls}, {"text": "It is done."}]}
    job = await api.submit(question, body=body)
    screen.print(f"202 accepted, {job.id}")
    told: set[tuple[int, int, str]] = set()
    async with asyncio.timeout(_CALLED_S):
        while not (job := await api.get(job.id)).is_ended:
            for call in _news(job, told):
                screen.print(call)
            if waiting := _to_decide(job):
                await _decide(stack, api, job, waiting, answer)
            await asyncio.sleep(0.1)
    for call in _news(job, told):
        screen.print(call)
    reason = (job.data.get("error") or {}).get("message", "")
    screen.print(f"[green]{job.state}[/] {job.text.strip() or reason}")
    return job


def _calls(job: Job) -> list[dict[str, Any]]:
    return [call for turn in job.data["turns"] for call in turn["calls"]]


def _news(job: Job, told: set[tuple[int, int, str]]) -> Iterator[str]:
    """A line for each call whose state is new."""
    for turn in job.data["turns"]:
        for call in turn["calls"]:
            key = (turn["turn"], call["place"], call["state"])
            if key not in told:
                told.add(key)
                said = f" -> {call['output']}" if call["output"] else ""
                name = f"{call['server']}.{call['tool']}"
                state = call["state"].replace("_", " ")
                yield f"  turn {key[0]}: [bold]{name}[/] {_line(call)} {state}{said}"


def _line(call: dict[str, Any]) -> str:
    """The arguments on one line: a small model spreads them out."""
    return " ".join(str(call["arguments"]).split())


def _to_decide(job: Job) -> dict[str, Any] | None:
    return next((c for c in _calls(job) if c["state"] == "awaiting_approval"), None)


async def _decide(
    stack: Stack, api: AsyncClient, job: Job, call: dict[str, Any], answer: str
) -> None:
    """Ask the person who sits here, once the predictor is asleep: nothing waits but a record."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ASLEEP_S):
            while stack.replicas:  # noqa: ASYNC110 (the stack tells no one)
                await asyncio.sleep(0.1)
    screen.print(f"replicas: {stack.ready}, while a person is asked")
    question = f"{call['server']}.{call['tool']} with {_line(call)}: run it? [y/N] "
    is_asked = answer == "ask" and sys.stdin.isatty()
    if answer == "ask" and not is_asked:
        screen.print(f"{question}yes (no one is at the terminal)")
    said = await asyncio.to_thread(input, question) if is_asked else answer
    is_approved = said.strip().lower() in ("y", "yes", "approve", "ask")
    place = f"/v1/jobs/{job.id}/approvals/{call['approval_id']}"
    reason = "" if is_approved else "the person said no"
    await api.call("POST", place, body={"approve": is_approved, "reason": reason})


def _ledger(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "ledger.db") as database:
        try:
            return database.execute("SELECT key, order_id, amount FROM refund").fetchall()
        except sqlite3.OperationalError:
            return []


if __name__ == "__main__":
    sys.exit(main())
