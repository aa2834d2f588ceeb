"""The console for all output, which neutralises text of models and callers.

Called by `screen`, which makes the two consoles that the commands print to. A model's answer, a job's error or a
tenant's name may contain anything: escape sequences that set the clipboard or the title, links, markup. All output
passes `render`, so this is the one place that must handle it.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that a terminal acts on instead of showing: C0 and C1 except line feed and tab, bidirectional
controls, and surrogates, which cannot be encoded.
"""


def shown(text: str) -> str:
    r"""The text with each control character as `\uXXXX`, which in JSON is the same value."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Terminal(Console):
    """A console that reads no markup unless a call asks for it, and prints no control characters but its own."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **more)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments with unsafe characters replaced."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)
