"""The request functions of `vllm bench serve` against an api: prints what each of them understood."""

import asyncio
import json
import sys
from dataclasses import asdict

import aiohttp
import vllm.engine.arg_utils  # noqa: F401  (first: vLLM's circular imports)
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS, RequestFuncInput

PATHS = {"openai-chat": "/v1/chat/completions", "openai": "/v1/completions"}


async def main(api: str, model: str) -> None:
    async with aiohttp.ClientSession() as session:
        calls = [
            ASYNC_REQUEST_FUNCS[backend](
                RequestFuncInput(f"Why {n}?", api + path, 3, 5, model, ignore_eos=True), session
            )
            for backend, path in PATHS.items()
            for n in range(20)
        ]
        print(json.dumps([asdict(found) for found in await asyncio.gather(*calls)]))


asyncio.run(main(*sys.argv[1:]))
