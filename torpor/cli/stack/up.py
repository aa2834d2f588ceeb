"""`torpor up`: the embedded stack until Ctrl-C, or behind this terminal."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from torpor.cli.errors import UsageError, UserError
from torpor.cli.flags import build, with_flags
from torpor.cli.options import DEFAULT_DATA_DIR
from torpor.local.settings import StackSettings

_POLL_S: Final = 0.1
_SWITCH: Final = {"detach": "Start it behind this terminal, and return once it is up."}


@with_flags(StackSettings, switches=_SWITCH)
def up(*, detach: bool = False, **flags: Any) -> None:
    """Run api, broker, store and predictors (from zero) on this machine until Ctrl-C."""
    import uvloop

    from eventing.telemetry import log, trace
    from torpor.local.data_dir import require_linux

    settings = build(StackSettings, **flags)
    require_linux()
    if settings.pipelines_file is not None:
        _check_steps(settings.pipelines_file)
    if detach:
        _detach(settings)
        return
    log.configure("stack", level=settings.log_level)
    trace.configure("stack")
    uvloop.run(_run(settings))
    trace.close()


def _check_steps(file: Path) -> None:
    """Raises `UsageError` for a step that does not exist, settings that it can not have, or a package that it needs
    and that is not installed.
    """
    from torpor.cli.step_settings import wrong_step

    if said := wrong_step(None, str(file), runs_here=True):
        raise UsageError(f"--pipelines-file: {said}")


async def _run(settings: StackSettings) -> None:
    from torpor.cli.view.screen import stderr, step
    from torpor.local.stack import Stack

    stack = Stack(settings, step)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stack.stop)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stack.run())
        ready = group.create_task(stack.up.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if stack.up.is_set():
            _announce(settings, "Ctrl-C ends it; state and models stay.")
        ready.cancel()
    stderr.print(f"stopped; state is kept in {settings.data_dir}")


def _announce(settings: StackSettings, how_to_end: str) -> None:
    from rich.text import Text

    from torpor.cli.view.screen import stderr
    from torpor.local.data_dir import find_addresses

    at, folder = find_addresses(settings.data_dir), settings.data_dir
    assert at is not None, "written before it is announced"  # noqa: S101
    here = "" if folder == DEFAULT_DATA_DIR else f" --data-dir {folder}"
    awake = f", {settings.min_replicas} to {settings.max_replicas} predictors"
    stderr.print(Text.assemble(("Torpor is up", "bold green"), awake))
    stderr.print(f"  api     {at.api}     (docs at {at.api}/docs, console at {at.api}/console)")
    stderr.print(f"  broker  {at.broker}/    (CloudEvents in)")
    if settings.metrics:
        from torpor.local.prometheus_files import CONFIG

        metrics = folder / "metrics"
        stderr.print(
            f"  metrics prometheus --config.file={metrics / CONFIG} "
            f"--storage.tsdb.path={metrics / 'data'}     (Grafana's dashboard stands beside it)"
        )
    key = "TORPOR_API_KEY=... " if _asks_for_keys() else ""
    stderr.print(f'  try     {key}torpor submit{here} --wait "Why is the sky blue?"')
    if source := os.environ.get("TORPOR_KEYS_SOURCE"):
        stderr.print(f"  keys    {key_command(source, here)}")
    who = "Callers need a key." if _asks_for_keys() else "A development stack: no keys."
    stderr.print(f"{how_to_end} {who}")


def key_command(source: str, here: str) -> str:
    """What makes a key that this stack accepts: in its Redis, or in the file that it reads."""
    return f"torpor keys create TENANT{here if source == 'redis' else f' --file {source}'}"


def _asks_for_keys() -> bool:
    """The api's own settings, which the stack passes on unchanged."""
    return any(os.environ.get(name) for name in ("TORPOR_KEYS_SOURCE", "TORPOR_OIDC_ISSUER"))


def _detach(settings: StackSettings) -> None:
    """Start the same command as a process of its own and wait until it is up."""
    from torpor.local.data_dir import find_addresses, make_private, owner_of, record_addresses
    from torpor.local.failure import reason_in

    if owner := owner_of(settings.data_dir):
        raise UserError(f"a stack runs on {settings.data_dir} already (process {owner})")
    make_private(settings.data_dir)
    record_addresses(settings.data_dir, None)  # the next note is that of the stack that starts here
    path = settings.data_dir / "logs" / "stack.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "torpor", *_without_detach(sys.argv[1:])]
    with open(path, "wb", opener=_for_the_owner) as said:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
    shown = 0
    while child.poll() is None and find_addresses(settings.data_dir) is None:
        shown = _show_from(path, shown)
        time.sleep(_POLL_S)
    if child.poll() is not None:
        reason = reason_in(path.read_text(errors="replace"))
        raise UserError(f"it did not start: {reason or f'see {path}'}")
    here = "" if settings.data_dir == DEFAULT_DATA_DIR else f" --data-dir {settings.data_dir}"
    _announce(settings, f"`torpor down{here}` ends it, `torpor logs{here}` shows what it says.")


def _without_detach(arguments: list[str]) -> list[str]:
    return [each for each in arguments if each not in ("--detach", "--no-detach")]


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _show_from(path: Path, shown: int) -> int:
    """Print new progress; gives how much has been printed."""
    from torpor.cli.view.screen import step

    text = path.read_text(errors="replace")
    for line in text[shown:].splitlines():
        if line.startswith("· "):
            step(line.removeprefix("· "))
    return shown + len(text[shown:])
