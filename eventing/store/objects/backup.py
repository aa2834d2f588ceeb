"""`python -m eventing.store.objects.backup`: puts a snapshot of the store into object storage, and deletes old ones.

Run by the CronJob torpor-backup after its first container wrote the snapshot. A process that dies half-way leaves the
older backups as they are; object storage shows no half of a new one.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.errors import ObjectsUnavailable
from eventing.store.objects.object_store import ObjectStore

_PREFIX: Final = "torpor-"
_SUFFIX: Final = ".rdb"


class BackupSettings(BaseSettings):
    """Read once at start from `TORPOR_*` variables."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    backup_url: str = Field(min_length=1)
    """The folder of the backups, as fsspec writes it: `s3://bucket/torpor`."""
    backup_file: Path = Path("/snapshot/dump.rdb")
    backups_kept: int = Field(48, ge=1)


def surplus(names: list[str], kept: int) -> list[str]:
    """Give the backups that are older than the `kept` newest ones. Other objects are not ours."""
    ours = sorted(each for each in names if each.startswith(_PREFIX) and each.endswith(_SUFFIX))
    return ours[:-kept]


async def run(settings: BackupSettings, now_s: float) -> str:
    """Keep the snapshot; give the name of its object.

    Raises `ObjectsUnavailable` when there is no snapshot or the storage cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    name = f"{_PREFIX}{stamp}{_SUFFIX}"
    objects = ObjectStore(settings.backup_url)
    await objects.write_file(name, str(settings.backup_file))
    for old in surplus(await objects.names(), settings.backups_kept):
        await objects.remove(old)
    return name


def main() -> int:
    """Exit status: 0 when the snapshot is kept, 1 with one line when not."""
    try:
        name = asyncio.run(run(BackupSettings(), time.time()))
    except ObjectsUnavailable as error:
        sys.stderr.write(f"torpor backup: {error} (TORPOR_BACKUP_URL): {error.__cause__}\n")
        return 1
    sys.stdout.write(f"kept: {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
