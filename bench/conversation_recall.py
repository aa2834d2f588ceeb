"""How much of the evidence in LoCoMo the recall of conversations finds: the fraction of a question's evidence turns
among the k items that are found best, over all questions with evidence.

The data is not here: `TORPOR_LOCOMO` names a folder with the conversations of the benchmark, one JSON file each
(`data/locomo10.zip` of github.com/snap-research/locomo). A message is «speaker: text», with the caption of its
picture, since a conversation here has one user and one assistant.

    TORPOR_LOCOMO=FOLDER python -m bench.conversation_recall [--chats N] [--k 10]
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.embedding.packaged import PackagedEmbedder
from steps.memory.ranking import rank

_TURN = re.compile(r"D\d+:\d+")


@dataclass(frozen=True)
class Chat:
    """One conversation: its messages by name, and its questions with the messages that answer them."""

    names: list[str]
    texts: list[str]
    questions: list[tuple[str, frozenset[str]]]


def read_chat(path: Path) -> Chat:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    turns = list(_turns(record))
    names = [str(turn["dia_id"]) for turn in turns]
    questions = []
    for asked in record["qa"]:
        named = frozenset(_TURN.findall(" ".join(asked.get("evidence") or ())))
        if evidence := named & frozenset(names):
            questions.append((str(asked["question"]), evidence))
    return Chat(names, [_text(turn) for turn in turns], questions)


def _turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    number = 1
    while f"session_{number}" in record:
        yield from record[f"session_{number}"]
        number += 1


def _text(turn: dict[str, Any]) -> str:
    caption = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
    return f"{turn['speaker']}: {turn['text']}{caption}"


async def recall_of(chat: Chat, embedder: PackagedEmbedder, k: int) -> list[float]:
    """The fraction of its evidence that each question finds."""
    vectors = await embedder.embed(chat.texts)
    asked = await embedder.embed([question for question, _ in chat.questions])
    found = []
    for (question, evidence), wanted in zip(chat.questions, asked, strict=True):
        rows = rank(chat.texts, list(vectors), question, wanted)[:k]
        found.append(len(evidence & {chat.names[row] for row in rows}) / len(evidence))
    return found


async def measure(folder: Path, chats: int, k: int) -> None:
    embedder, found = PackagedEmbedder(), list[float]()
    try:
        for path in sorted(folder.rglob("*.json"))[:chats]:
            chat, started_s = read_chat(path), time.perf_counter()
            ours = await recall_of(chat, embedder, k)
            found += ours
            took_s = time.perf_counter() - started_s
            print(
                f"{path.stem}: {len(chat.texts)} messages, {len(ours)} questions, "
                f"recall@{k} {sum(ours) / len(ours):.3f}, {took_s:.1f} s"
            )
    finally:
        await embedder.aclose()
    print(f"all: {len(found)} questions, recall@{k} {sum(found) / len(found):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chats", type=int, default=10)
    parser.add_argument("--k", type=int, default=10)
    asked = parser.parse_args()
    folder = os.environ.get("TORPOR_LOCOMO")
    if not folder:
        sys.stderr.write("TORPOR_LOCOMO must name the folder of the conversations\n")
        return 2
    asyncio.run(measure(Path(folder), asked.chats, asked.k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
