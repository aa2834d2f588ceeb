"""Judges an answer while it is made, and says up to which token it may be shown. Pure.

Called by `predictor.generation.generation`. What is shown is never taken back, so text is held back until no rule can
find a match in it any more: the longest beginning of a match that is none yet, and whatever a match covers that reaches
the end of the text so far. Text is judged decoded and joined, never token by token: «ass» and «isting» are one word.
An attempt that goes on after another is given the whole answer's text again (`Engine.run`), so nothing is stored.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from eventing.job.moderation.rules import Finding, Rules, decoded, plain_letters

Channel = tuple[int, str]
"""A choice of the answer, and one of its texts."""

_ARGUMENTS: Final = ".arguments"
_TEXTS: Final = ("content", "reasoning_content", "reasoning", "refusal")


class WindowJudge:
    """The rules over one answer. `mark` is the position up to which its tokens may be shown."""

    def __init__(self, rules: Rules) -> None:
        self.mark = 0
        self._rules = rules
        self._longest = rules.longest
        self._channels: dict[Channel, _Text] = {}
        self._milestones: deque[tuple[int, Channel | None, int]] = deque()

    def feed(self, entries: Iterable[Mapping[str, Any]], position: int) -> Finding | None:
        """Judge what tokens up to `position` have added; the first thing that is found."""
        grown: dict[Channel, None] = {}
        for entry in entries:
            for channel, piece in _texts(entry):
                self._channels.setdefault(channel, _Text()).add(piece)
                grown[channel] = None
        for channel in grown:
            text = self._channels[channel]
            self._milestones.append((position, channel, text.length))
            # Escapes of JSON can hide what arguments say: they are judged at the end, decoded.
            if channel[1].endswith(_ARGUMENTS):
                continue
            if found := text.judge(self._rules, self._longest):
                return found
        # Before any text a piece without one says nothing: that of a continued answer comes before its tokens' text.
        if not grown and self._channels:
            self._milestones.append((position, None, 0))
        self._move()
        return None

    def finish(self) -> Finding | None:
        """Judge the rest: no text follows."""
        for (_, name), text in self._channels.items():
            if name.endswith(_ARGUMENTS):
                found = next(iter(self._rules.findings(decoded(text.kept))), None)
            else:
                found = text.judge(self._rules, self._longest, is_whole=True)
            if found:
                return found
        return None

    def _move(self) -> None:
        """The mark goes up to the last position before which all text may be shown."""
        while self._milestones:
            position = self._milestones[0][0]
            for at, channel, length in self._milestones:
                if at != position:
                    break
                if channel is not None and self._channels[channel].safe < length:
                    return
            while self._milestones and self._milestones[0][0] == position:
                self._milestones.popleft()
            self.mark = position


class _Text:
    """One channel's text: only what rules may still look at is kept."""

    def __init__(self) -> None:
        self.safe = 0  #: characters that may be shown
        self.length = 0
        self.kept = ""

    def add(self, piece: str) -> None:
        plain = plain_letters(piece)
        self.kept += plain
        self.length += len(plain)

    def judge(self, rules: Rules, longest: int, *, is_whole: bool = False) -> Finding | None:
        """The first finding that more text can not change; else moves `safe`."""
        text, offset = self.kept, self.length - len(self.kept)
        safe = len(text) if is_whole else max(0, len(text) - longest)
        for rule in rules.rules:
            for found in rule.findings(text):
                # At the cut it can not be seen what stands before it; it was judged when that could be.
                is_old = offset > 0 and found.start == 0
                if not is_old and (is_whole or found.end < len(text)):
                    return found
            if not is_whole and (start := rule.touches_end(text)) is not None:
                safe = min(safe, start)
        self.safe = max(self.safe, offset + safe)
        # Of what is shown as much is kept as a match may begin with, and the character before that.
        keep_from = max(0, min(self.safe - offset, len(text)) - longest - 1)
        self.kept = text[keep_from:]
        return None


def _texts(entry: Mapping[str, Any]) -> Iterator[tuple[Channel, str]]:
    """The texts of an entry of a token stream, each with its channel."""
    index = int(entry.get("index", 0))
    delta = entry.get("delta") or {}
    for name in _TEXTS:
        if piece := delta.get(name):
            yield (index, name), str(piece)
    if piece := entry.get("text"):
        yield (index, "text"), str(piece)
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        for name in ("name", "arguments"):
            if piece := function.get(name):
                yield (index, f"{call.get('index', 0)}.{name}"), str(piece)
