"""The look of pages and plots: colours for light and dark, sizes for desktop and phone, and a page's frame.

Called by the plots, and by the pages of the simulator and of `torpor load`. Everything is in the file itself: no
script, no font and no picture of another host.
"""

import importlib.metadata
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

WIDTH: Final = 720
"""Width of every picture in its own units; it is drawn as wide as its place."""
LINES: Final = 7
"""Lines and bars that are told apart."""
# Told apart by colour-blind readers too (Okabe and Ito; lighter on dark).
_LIGHT: Final = ("#0072B2", "#D55E00", "#007a59", "#b3548a", "#a87400", "#3d8fc0", "#222222")
_DARK: Final = ("#56B4E9", "#ff9a57", "#35c99a", "#e79ac6", "#f0c24a", "#a5d3ff", "#eeeeee")
# The later of two lines that lie on each other is thinner and broken, so that both are seen.
_STROKES: Final = ("4.5", "2.6", "2", "1.8", "1.8", "1.6", "1.6")
_DASHES: Final = ("none", "none", "7 4", "2 3", "10 3 2 3", "4 2", "1 3")


def _colours(colours: Sequence[str], ink: str, quiet: str, line: str, back: str) -> str:
    named = "".join(f"--l{number}:{colour};" for number, colour in enumerate(colours))
    return f"{named}--ink:{ink};--quiet:{quiet};--line:{line};--back:{back}"


_ROOT_LIGHT: Final = _colours(_LIGHT, "#1b1f23", "#59626b", "#dcdfe2", "#ffffff")
_ROOT_DARK: Final = _colours(_DARK, "#e6e8ea", "#9aa4ae", "#323a42", "#1c2126")
_BY_LINE: Final = "".join(
    f".l{n}{{stroke:var(--l{n});stroke-width:{_STROKES[n]};stroke-dasharray:{_DASHES[n]}}}"
    f".f{n}{{fill:var(--l{n})}}"
    for n in range(LINES)
)
PLOT_STYLE: Final = (
    f"svg{{{_ROOT_LIGHT}}}"
    f"@media(prefers-color-scheme:dark){{svg{{{_ROOT_DARK}}}}}"
    ".back{fill:var(--back)}text{fill:var(--quiet);font:12px system-ui,sans-serif}"
    ".title{fill:var(--ink);font-size:15px;font-weight:600}.name{fill:var(--ink)}"
    ".end{text-anchor:end}.middle{text-anchor:middle}"
    ".grid{stroke:var(--line)}.target{stroke:var(--ink);stroke-dasharray:5 4}"
    "path{fill:none;stroke-linejoin:round}.dot{stroke:none}"
    f"{_BY_LINE}"
    # A phone shows the picture at half its size: larger words, and every second label of an axis.
    "@media(max-width:520px){text{font-size:19px}.title{font-size:23px}.second{display:none}}"
)
_PAGE_STYLE: Final = (
    f":root{{color-scheme:light dark;{_ROOT_LIGHT};--paper:#fafaf7;--good:#e4f5ec;--bad:#b3261e}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_ROOT_DARK};--paper:#14171a;--good:#16382b;--bad:#ff8a80}}}}"
    "*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:74rem;margin:0 auto;padding:1rem;"
    "color:var(--ink);background:var(--paper)}h1{font-size:1.4rem}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}"
    "ul{padding-left:1.2rem;color:var(--quiet)}.verdict{background:var(--good);border-radius:8px;padding:.6rem 1rem}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.4rem 0}"
    "td,th{padding:.25rem .8rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left;color:var(--quiet)}.best{background:var(--good)}"
    ".missed{color:var(--bad)}.plots{display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(32rem,100%),1fr))}"
    ".plots svg{width:100%;height:auto;border:1px solid var(--line);border-radius:10px}"
    "footer{color:var(--quiet);font-size:.85rem;margin:1.5rem 0}"
)


def framed(title: str, body: str, now: datetime) -> str:
    """A whole page; it says when it was made, and by which version."""
    made = f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC, torpor {version()}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n<footer>Made {made}.</footer>\n</body></html>\n"
    )


def version() -> str:
    """The installed version of Torpor."""
    try:
        return importlib.metadata.version("torpor")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table of finished rows, which may be wider than a phone."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{names}</tr>\n{"".join(rows)}</table></div>\n'


def row(name: str, values: Sequence[str]) -> str:
    """A row of a table."""
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f"<tr><td>{escape(name)}</td>{cells}</tr>\n"
