"""Asks a question about the files of a folder, and shows which of them the answer is from.

    python ask_files.py docs "What happens to a job when its predictor dies?"

Uses the official client against OPENAI_BASE_URL (http://127.0.0.1:8080/v1): a vector store of the folder's files,
then a response with the tool `file_search`. The same question again is answered from the cache.
"""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

READABLE = {".md", ".txt", ".html", ".pdf"}
CHUNKS = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50},
}


def index(client: OpenAI, folder: Path) -> str:
    """A vector store with the folder's files; its id."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in READABLE)
    store = client.vector_stores.create(name=folder.name)
    files = [client.files.create(file=path, purpose="assistants") for path in paths]
    batch = client.vector_stores.file_batches.create_and_poll(
        vector_store_id=store.id,
        file_ids=[file.id for file in files],
        chunking_strategy=CHUNKS,
        poll_interval_ms=500,
    )
    print(f"{batch.file_counts.completed} of {batch.file_counts.total} files are indexed")
    return store.id


def ask(client: OpenAI, model: str, store_id: str, question: str) -> None:
    """Print the answer, its citations, and how long it took."""
    started_s = time.monotonic()
    raw = client.responses.with_raw_response.create(
        model=model,
        input=question,
        tools=[{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 2}],
        include=["file_search_call.results"],
        max_output_tokens=80,
        temperature=0,
        extra_headers={"Cache-Control": "max-age=3600"},
    )
    took_s = time.monotonic() - started_s
    is_hit = "; hit" in raw.headers.get("cache-status", "")
    print(f"\n{question}\n  after {took_s:.2f} s{', from the cache' if is_hit else ''}:")
    for item in raw.parse().output:
        if item.type == "file_search_call":
            for result in item.results or ():
                print(f"  found {result.filename} (score {result.score:.2f})")
        elif item.type == "message":
            for part in item.content:
                if part.type == "output_text":
                    print(f"  {part.text.strip()}")
                    cited = {
                        each.filename for each in part.annotations if each.type == "file_citation"
                    }
                    print(f"  cited: {', '.join(sorted(cited)) or 'nothing'}")


def main() -> None:
    folder, question = Path(sys.argv[1]), sys.argv[2]
    url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
    key = os.environ.get("OPENAI_API_KEY", "none")
    with OpenAI(base_url=url, api_key=key, timeout=600) as client:
        model = client.models.list().data[0].id
        store_id = index(client, folder)
        for _ in range(2):
            ask(client, model, store_id, question)


if __name__ == "__main__":
    main()
