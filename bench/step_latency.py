"""How long a caller waits for an answer that a step gives, warm: an embedding, and a semantic hit.

    python -m bench.step_latency [--calls 200]

A whole local stack with the seeded engine; one client, one call after the other, over one connection.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.torpor_up import torpor_up

PIPELINES = """
embedder: {steps: [embed]}
shop:
  steps:
    - step: semantic-cache
      settings: {shadow: null, lookup_ms: 1000}
      on_failure: continue
"""


def embedding(client: httpx.Client, number: int) -> None:
    body = {"model": "embedder", "input": f"How do I renew library card number {number}?"}
    client.post("/v1/embeddings", json=body).raise_for_status()


def chat(client: httpx.Client, text: str) -> bool:
    """True when the cache answered."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "shop", "messages": messages, "temperature": 0, "max_tokens": 40}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return "detail=semantic" in answer.headers.get("cache-status", "")


def hit(client: httpx.Client, number: int) -> None:
    forms = (
        "How do I renew my card?",
        "hi, how can i renew my card please",
        "How could I renew my card",
    )
    assert chat(client, forms[number % 3])


def timed(what: Callable[[int], None], calls: int) -> str:
    took_ms = []
    for number in range(calls):
        started = time.perf_counter()
        what(number)
        took_ms.append(1000 * (time.perf_counter() - started))
    cuts = statistics.quantiles(took_ms, n=100)
    return f"{statistics.median(took_ms):.1f} | {cuts[94]:.1f} | {cuts[98]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=200)
    calls = parser.parse_args().calls
    folder = Path(tempfile.mkdtemp())
    (folder / "pipelines.yaml").write_text(PIPELINES)
    flags = ("--engine", "seeded", "--model", "shop=seeded", "--window", "60s")
    flags += ("--pipelines", str(folder / "pipelines.yaml"))
    with (
        torpor_up(folder / "data", *flags) as stack,
        httpx.Client(base_url=stack.at.api, timeout=60) as client,
    ):
        started = time.perf_counter()
        embedding(client, 0)
        print(f"first embedding, from zero: {time.perf_counter() - started:.1f} s")
        while not chat(client, "How do I renew my card?"):
            time.sleep(0.1)
        print("| answer | p50 ms | p95 | p99 |\n|---|---|---|---|")
        print(f"| embedding | {timed(lambda n: embedding(client, n), calls)} |")
        print(f"| semantic hit | {timed(lambda n: hit(client, n), calls)} |")


if __name__ == "__main__":
    main()
