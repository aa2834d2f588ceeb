"""The reference that a record keeps to the object with its job's large result and token stream.

Called by `eventing.store.archive`, which makes it, and `eventing.store.job_record.parse`. No I/O.
"""

from dataclasses import dataclass

import orjson

from eventing.job.stream import cursor_order


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Where a job's result and stream are: the first `result_bytes` of object `name` are the result
    (JSON, none when 0), the rest are blocks of entries, one JSON line each, compressed by zlib. `blocks`
    tells where each starts, with the cursor of its last entry.
    """

    name: str
    size_bytes: int
    result_bytes: int
    blocks: tuple[tuple[str, int], ...]

    def to_json(self) -> bytes:
        return orjson.dumps([self.name, self.size_bytes, self.result_bytes, self.blocks])

    @classmethod
    def parse(cls, raw: bytes) -> "ObjectRef":
        name, size, result_bytes, blocks, *_ = orjson.loads(raw)
        places = tuple((cursor, start) for cursor, start in blocks)
        return cls(name=name, size_bytes=size, result_bytes=result_bytes, blocks=places)

    def block_after(self, cursor: str) -> tuple[int, int] | None:
        """Start and end of the block with the first entry after `cursor`; None after the last."""
        ends = [start for _, start in self.blocks[1:]] + [self.size_bytes]
        for (last, start), end in zip(self.blocks, ends, strict=True):
            if cursor_order(last) > cursor_order(cursor):
                return start, end
        return None
