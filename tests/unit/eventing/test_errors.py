"""The error tree: what each class says a caller may do."""

import pytest

from eventing import errors
from eventing.errors import BadRequest, TorporError, Unavailable


def tree(root: type[TorporError]) -> list[type[TorporError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


OURS = [each for each in tree(TorporError) if each.__module__ == errors.__name__]


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.__name__)
class TestEveryError:
    def test_its_status_says_whose_fault_it_is(self, error: type[TorporError]) -> None:
        if issubclass(error, Unavailable):
            assert error.status == 503
        elif issubclass(error, errors.NotCached):
            assert error.status == 504  # as RFC 9111 has it
        elif error is not TorporError:
            assert 400 <= error.status < 500

    def test_only_what_may_work_later_is_retryable(self, error: type[TorporError]) -> None:
        assert error.is_retryable == issubclass(error, Unavailable)

    def test_its_message_is_its_text(self, error: type[TorporError]) -> None:
        assert str(error("safe to show")) == error("safe to show").message == "safe to show"

    def test_every_error_is_in_the_tree_of_the_modules_docstring(
        self, error: type[TorporError]
    ) -> None:
        assert error.__name__ in (errors.__doc__ or "")
        assert error is TorporError or str(error.status) in (errors.__doc__ or "")


def test_codes_are_public_and_therefore_distinct() -> None:
    codes = [each.code for each in OURS]

    assert len(codes) == len(set(codes))


def test_a_bad_request_names_its_field() -> None:
    assert BadRequest("x", "body.model").field == "body.model"
    assert BadRequest("x").field == ""


def test_every_unavailable_error_has_a_retry_after() -> None:
    assert Unavailable("x").retry_after_s > 0
    assert Unavailable("x", 5).retry_after_s == 5
