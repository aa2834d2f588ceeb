"""A result file of a batch, written in parts, since object storage cannot append.

Called by the runner. Parts are written before the record that names them; a part that no record names is ignored.
"""

from collections import deque
from dataclasses import replace
from typing import Final

from api.batch.batch import Batch
from eventing.store.file_store import BATCH_FILE_KEPT_S, FileStore

_PART_BYTES: Final = 256 * 1024
"""Size of a part: 50,000 answers make some 120 of them."""
KEPT_MERGED_S: Final = 60.0
"""How long a merged part is kept: a store that lost its last second (power cut, failover) names it again."""


class ResultFile:
    """The output or the error file of a batch. `parts` and `size` go into the record."""

    def __init__(self, files: FileStore, batch: Batch, epoch: int, *, is_output: bool) -> None:
        self._files = files
        self._tenant = batch.tenant
        self._id = batch.output_file_id if is_output else batch.error_file_id
        self._name = f"{batch.id}_{'output' if is_output else 'error'}.jsonl"
        self._kept_s = batch.output_kept_s or BATCH_FILE_KEPT_S
        self._epoch = epoch
        self._written = 0
        self._entries: list[bytes] = []
        self._last = b""
        self._merged: deque[tuple[float, str]] = deque()
        self.parts = batch.output_parts if is_output else batch.error_parts
        self.size = batch.output_bytes if is_output else batch.error_bytes

    @property
    def pending(self) -> int:
        """Entries that are not in a part yet."""
        return len(self._entries)

    def add(self, entry: bytes) -> None:
        """Add one line."""
        self._entries.append(entry)

    async def write(self, now_s: float) -> None:
        """Write the pending entries as a part. A small last part is written again together with them, or there
        would be a part for each half second. The merged part has a new name; the old one is deleted once no record
        can name it any more.
        """
        if not self._entries:
            return
        data, self._entries = b"".join(self._entries), []
        is_small = bool(self._last) and len(self._last) + len(data) <= _PART_BYTES
        whole = self._last + data if is_small else data
        self._written += 1
        part = f"part-{self._epoch}-{self._written}"  # no other runner has our epoch
        await self._files.write_part(self._tenant, self._id, part, whole)
        self._last = whole
        self.size += len(data)
        if is_small:
            self._merged.append((now_s, self.parts[-1]))
            self.parts = (*self.parts[:-1], part)
        else:
            self.parts = (*self.parts, part)

    async def drop_merged(self, now_s: float) -> None:
        """Delete parts that were merged long ago; the last ones go with the file."""
        while self._merged and self._merged[0][0] + KEPT_MERGED_S <= now_s:
            _, part = self._merged.popleft()
            await self._files.drop_part(self._tenant, self._id, part)

    async def publish(self) -> None:
        """Make the parts a file, if there are any."""
        if self.parts:
            card = self._files.new_card(
                self._tenant, self._name, "batch_output", self._id, kept_s=self._kept_s
            )
            await self._files.publish(replace(card, bytes=self.size, parts=self.parts))
