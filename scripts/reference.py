"""Writes `docs/reference/`: every setting of every process, and every command of `torpor`.

Called by `make reference`; `tests/docs/test_reference.py` holds the pages to the code.
"""

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from eventing.broker.settings import BrokerSettings
from eventing.telemetry.trace import TraceSettings
from knative.external_scaler.settings import ExternalScalerSettings
from predictor.settings import PredictorSettings
from steps.settings import StepsSettings
from torpor.cli.app import assembled
from torpor.local.settings import StackSettings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
PROCESSES: dict[str, type[BaseSettings]] = {
    "The stack on one machine: `torpor up`": StackSettings,
    "The api: `python -m api`": ApiSettings,
    "Broker and pump: `python -m eventing.broker`, `python -m eventing.pump`": BrokerSettings,
    "The predictor: `python -m predictor`": PredictorSettings,
    "The steps: `python -m steps`": StepsSettings,
    "The external scaler: `python -m knative.external_scaler`": ExternalScalerSettings,
    "Traces, of every process but the scaler": TraceSettings,
}


def settings_page() -> str:
    """Every variable: its default, its range, what it does."""
    lines = [
        "# Settings",
        "",
        "Written by `make reference` from the code. Each process reads its variables once, at start; a value that can",
        "not work is one line that names the variable, and exit status 2. `--print-settings` shows what api, broker",
        "and predictor run with, secrets masked.",
    ]
    for title, settings in PROCESSES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| variable | default | range | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_row(*each) for each in _fields(settings)]
    return "\n".join(lines) + "\n"


def _fields(settings: type[BaseSettings]) -> Iterator[tuple[str, str, str, str]]:
    prefix = str(settings.model_config.get("env_prefix", ""))
    meanings = _meanings(settings)
    for name, field in settings.model_fields.items():
        default = "" if field.default_factory else _shown(field.default)
        limits = [
            f"{sign} {getattr(limit, word)}"
            for limit in field.metadata
            for word, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if hasattr(limit, word)
        ]
        between = ", ".join(limits)
        yield f"{prefix}{name}".upper(), default, between, meanings.get(name, "")


def _meanings(settings: type[BaseSettings]) -> dict[str, str]:
    """The text under each field, of the class and of those it is made from."""
    found: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if not issubclass(owner, BaseSettings) or owner is BaseSettings:
            continue
        (body,) = [
            node.body
            for node in ast.parse(inspect.getsource(owner)).body
            if isinstance(node, ast.ClassDef)
        ]
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(field.target, ast.Name)
            ):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _shown(default: Any) -> str:
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    return "" if default in ("", None, ()) else f"`{default}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def cli_page() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Command line",
        "",
        "Written by `make reference` from the code. `torpor COMMAND --help` says the same.",
        "",
        "Exit codes, of every command: **0** done; **1** failed (the job, the stack, a check; no answer); **2**",
        "usage error (a flag, an argument, a `TORPOR_` variable); **130** interrupted. An error is one line on",
        "standard error; answers, tables and JSON go to standard output, everything else to standard error.",
        "",
        "A command asks the api of `--api` (`TORPOR_API_URL`), else the stack of `--data-dir` (`TORPOR_DATA_DIR`),",
        "else the stack of `.torpor` in this folder, else `http://127.0.0.1:8000`.",
    ]
    root = typer.main.get_command(assembled())
    for path, command in _commands(root, "torpor"):
        lines += ["", f"## `{path}`", "", _plain(command.help), ""]
        if examples := [line for line in (command.epilog or "").split("\n\n")[1:] if line]:
            lines += ["```bash", *(line.strip() for line in examples), "```", ""]
        options = [
            each
            for each in command.params
            if not getattr(each, "hidden", False) and each.name != "help"
        ]
        if options:
            lines += ["| argument or option | default | meaning |", "|---|---|---|"]
            lines += [_option(each) for each in options]
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, below `command`."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    if command.invoke_without_command and path != "torpor":
        yield path, command
    for name, found in sorted(command.commands.items()):
        if not found.hidden:
            yield from _commands(found, f"{path} {name}")


def _option(option: Any) -> str:
    named = option.param_type_name == "argument"
    name = (
        (option.name or "").upper() if named else ", ".join((*option.opts, *option.secondary_opts))
    )
    default = (
        ""
        if option.default in (None, "", (), False) or callable(option.default)
        else f"`{option.default}`"
    )
    return _row(f"`{name}`", default, _plain(getattr(option, "help", "") or ""))


def _plain(text: str | None) -> str:
    return " ".join(line.strip() for line in inspect.cleandoc(text or "").splitlines()).strip()


PAGES = {"settings.md": settings_page, "cli.md": cli_page}


def main() -> int:
    """Write the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
