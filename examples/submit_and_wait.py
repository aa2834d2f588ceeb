"""Ask one question with Torpor's own client: submit, follow, read."""

import asyncio
import sys

from torpor.client import AsyncClient


async def main(prompt: str) -> None:
    async with AsyncClient() as torpor:  # TORPOR_API_URL, TORPOR_API_KEY
        job = await torpor.submit(prompt, body={"max_tokens": 32})
        print(f"accepted as {job.id}", file=sys.stderr)
        async for event in torpor.stream(job.id):
            print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Why is the sky blue?"))
