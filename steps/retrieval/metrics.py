"""Metrics of indexing and retrieval."""

from typing import Final

from prometheus_client import Counter

FILES: Final = Counter(
    "torpor_vector_files_total", "Files of vector stores that were indexed or failed.", ["status"]
)
CHUNKS: Final = Counter("torpor_vector_chunks_total", "Chunks put into vector indexes.")
SEARCHES: Final = Counter(
    "torpor_retrieval_searches_total",
    "Searches of vector stores; `empty` ones found nothing.",
    ["outcome"],
)
