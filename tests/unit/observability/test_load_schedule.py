"""What a load asks, and when: the same seed, the same load."""

from itertools import islice

import pytest

from torpor.load.schedule import ClientKind, Shape, endless, parse_mix, prompt_of, shots
from torpor.simulator.load import Load
from torpor.simulator.workload import Lengths, Profile, ProfileKind

STEADY = Load(Profile(ProfileKind.STEADY, 60, 5, 5), seed=3)


def test_the_same_seed_gives_the_same_shots() -> None:
    assert list(shots(STEADY, Shape(seed=3))) == list(shots(STEADY, Shape(seed=3)))


def test_a_faster_clock_sends_the_same_shots_sooner() -> None:
    slow = list(shots(STEADY, Shape()))
    fast = list(shots(STEADY, Shape(speed=2.0)))

    assert [shot.at_s * 2 for shot in fast] == pytest.approx([shot.at_s for shot in slow])


def test_nothing_is_due_at_or_after_the_end() -> None:
    assert max(shot.at_s for shot in shots(STEADY, Shape(), until_s=10)) < 10


def test_lengths_are_cut_to_what_the_model_takes() -> None:
    found = list(shots(STEADY, Shape(prompt_cap=50, output_cap=7)))

    assert max(shot.prompt_tokens for shot in found) == 50
    assert max(shot.output_tokens for shot in found) == 7


def test_clients_come_in_the_shares_asked_for() -> None:
    mix = {ClientKind.ASYNC: 3, ClientKind.SSE: 1}
    found = list(shots(Load(Profile(ProfileKind.STEADY, 600, 5, 5)), Shape(mix=mix)))

    share = sum(shot.kind is ClientKind.ASYNC for shot in found) / len(found)
    assert share == pytest.approx(0.75, abs=0.05)
    assert ClientKind.SYNC not in {shot.kind for shot in found}


def test_two_users_of_a_closed_loop_ask_different_things() -> None:
    one = list(islice(endless(Shape(), Lengths(), 0), 20))
    two = list(islice(endless(Shape(), Lengths(), 1), 20))

    assert one != two


def test_a_mix_is_read_with_or_without_weights() -> None:
    assert parse_mix("async:2, sse") == {ClientKind.ASYNC: 2, ClientKind.SSE: 1}


@pytest.mark.parametrize("text", ["", "grpc", "sse:many", "sse:0"])
def test_a_mix_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"clients are|at least one"):
        parse_mix(text)


def test_a_prompt_has_a_word_a_token() -> None:
    assert len(prompt_of(9).split()) == 9
