"""A batch from its upload to its result files, through the whole stack: lines a second, and the api's memory.

`python -m bench.api.batch --lines 50000 --json api_batch.json`. With the seeded engine, whose own cost is
negligible, so this is Torpor's own cost of a line. One line in a thousand is invalid. Exit status 1 when a line is
missing, doubled, or has another number than its own.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import orjson
import psutil
from openai import AsyncOpenAI

from bench.report import machine, publish
from bench.torpor_up import Stack, torpor_up

URL: Final = "/v1/chat/completions"
BAD_EVERY: Final = 1000
LOOK_EVERY_S: Final = 0.5
FLAGS: Final = (
    *("--engine", "seeded", "--time-scale", "10"),
    *("--container-concurrency", "64", "--max-replicas", "2"),
)


def api_pid(stack: Stack) -> int:
    """The process id of the stack's api."""
    family = psutil.Process(stack.pid).children(recursive=True)
    return next(one.pid for one in family if one.cmdline()[-2:] == ["-m", "api"])


def write_lines(path: Path, count: int, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Why do birds sleep?"}]}
    body["seeded"] = {"output_tokens": 4, "tokens_per_s": 1000}
    with path.open("wb") as file:
        for number in range(1, count + 1):
            good = {"custom_id": f"c{number}", "method": "POST", "url": URL, "body": body}
            line = good if number % BAD_EVERY else {"custom_id": f"c{number}", "url": URL}
            file.write(orjson.dumps(line) + b"\n")


async def run(api: str, pid: int, path: Path, timeout_s: float) -> dict[str, Any]:
    process = psutil.Process(pid)
    client = AsyncOpenAI(base_url=f"{api}/v1", api_key="none", max_retries=2, timeout=60)
    rss_before, cpu_before = process.memory_info().rss, sum(process.cpu_times()[:2])
    started_s = time.perf_counter()
    file = await client.files.create(file=path, purpose="batch")
    uploaded_s = time.perf_counter() - started_s
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h"
    )
    most = 0
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(LOOK_EVERY_S)
        most = max(most, process.memory_info().rss)
        batch = await client.batches.retrieve(batch.id)
        if time.perf_counter() - started_s > timeout_s:
            raise SystemExit(f"not done in time: {batch.request_counts}")
    took_s = time.perf_counter() - started_s
    cpu_s = sum(process.cpu_times()[:2]) - cpu_before
    if batch.output_file_id is None or batch.error_file_id is None:
        raise SystemExit(f"not as expected: {batch.status}, {batch.request_counts}")
    output = (await client.files.content(batch.output_file_id)).text.splitlines()
    errors = (await client.files.content(batch.error_file_id)).text.splitlines()
    count = sum(1 for _ in path.open("rb"))
    good = {f"c{n}" for n in range(1, count + 1) if n % BAD_EVERY}
    failed = [orjson.loads(line)["error"]["line"] for line in errors]
    is_whole = {orjson.loads(line)["custom_id"] for line in output} == good
    is_whole = is_whole and len(output) == len(good) and not any(n % BAD_EVERY for n in failed)
    return {
        "lines": count,
        "status": batch.status,
        "every_line_once": is_whole and len(failed) == count - len(good),
        "upload_s": round(uploaded_s, 2),
        "took_s": round(took_s, 1),
        "lines_per_second": round(count / took_s, 1),
        "api_cpu_ms_a_line": round(cpu_s / count * 1000, 2),
        "input_mb": round(path.stat().st_size / 1e6, 1),
        "api_rss_before_mb": rss_before >> 20,
        "api_rss_most_mb": most >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--timeout", type=float, default=3600.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torpor_up(Path(folder, "data"), *FLAGS) as stack:
        path, api = Path(folder, "lines.jsonl"), stack.at.api
        model = json.loads(urlopen(f"{api}/v1/models").read())["data"][0]["id"]
        write_lines(path, args.lines, model)
        report = asyncio.run(run(api, api_pid(stack), path, args.timeout))
    publish(report | {"machine": machine()}, args.json)
    if not report["every_line_once"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
