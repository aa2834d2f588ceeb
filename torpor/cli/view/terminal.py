"""The operator's terminal, where words of models and callers are only words.

Called by `screen`, which makes the two that the commands print to. A model's answer, a job's error
or a tenant's name may hold anything: escape sequences that set the clipboard or the title, links,
markup. Everything that is printed passes `render`, so this is the one place that must know.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys instead of showing: C0 and C1 but line feed and tab, what turns the
direction of writing, and halves of surrogate pairs, which it can not be sent.
"""


def shown(text: str) -> str:
    r"""The text with each control character as `\uXXXX`, which in JSON is the same value."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Terminal(Console):
    """A console that reads no markup in what it prints, unless a call asks for it, and lets no
    control character through but its own.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **more)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments, made safe."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)
