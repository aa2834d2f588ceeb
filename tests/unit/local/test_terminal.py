"""Text of models and callers on the operator's terminal."""

import io
import json
import re

import pytest
from rich.table import Table

from torpor.cli.view.terminal import Terminal, shown

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
LINK = "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\"
HOSTILE = f"[red]a[/] [/] :smile: {CLIPBOARD}{LINK}\x9b31m\x1b[2J\r\u202etxt"


def printed(thing: object) -> str:
    """As a terminal in colour would be sent it, without our own colours."""
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, width=200)
    terminal.print(thing, style="red")
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def as_a_table(text: str) -> Table:
    table = Table("id", text, title=text, box=None)
    table.add_row("1", text)
    return table


@pytest.mark.parametrize("made", [str, as_a_table], ids=["text", "table"])
def test_a_hostile_word_is_shown_as_it_is_written_and_obeyed_nowhere(made: object) -> None:
    text = printed(made(HOSTILE))  # type: ignore[operator]

    assert not set(text) & set("\x1b\x07\x9b\r\u202e")
    assert "[red]a[/] [/] :smile:" in text
    assert "\\u001b]52;c;ZXZpbA==" in text


def test_lines_and_tabs_of_an_answer_stay() -> None:
    assert shown("a\n\tb\u00a0é") == "a\n\tb\u00a0é"


def test_json_keeps_its_value_when_a_control_character_is_written_out() -> None:
    assert json.loads(shown(json.dumps({"a": "\x9b\u202e"}, ensure_ascii=False))) == {
        "a": "\x9b\u202e"
    }


def test_half_a_surrogate_pair_can_be_printed() -> None:
    assert "\\ud800" in printed("\ud800")
