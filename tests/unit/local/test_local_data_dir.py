"""The note that tells the command line where a stack is."""

from pathlib import Path

from torpor.local.data_dir import Addresses, find_addresses, locked, record_addresses


def test_a_note_read_during_a_rewrite_is_complete(tmp_path: Path) -> None:
    record_addresses(tmp_path, Addresses(api="http://old"))
    with (tmp_path / "addresses.json").open() as reader:
        record_addresses(tmp_path, Addresses(api="http://new"))

        assert "http://old" in reader.read()


def test_a_note_is_found_until_it_is_taken_away(tmp_path: Path) -> None:
    with locked(tmp_path):
        record_addresses(tmp_path, Addresses(api="http://here"))
        assert find_addresses(tmp_path) == Addresses(api="http://here")

        record_addresses(tmp_path, None)

        assert find_addresses(tmp_path) is None


def test_the_note_of_a_stack_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    """`torpor up --detach` said that the next one is up while it had only begun to start."""
    with locked(tmp_path):
        record_addresses(tmp_path, Addresses(api="http://killed"))

    assert find_addresses(tmp_path) is None
    with locked(tmp_path):
        assert find_addresses(tmp_path) is None
