"""Triggers as Knative writes them, and the filters of the CloudEvents Subscriptions API."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.broker.delivery.decision import BackoffPolicy
from eventing.broker.trigger import matches, parse_delivery, parse_trigger
from eventing.cloudevent.event import Event
from eventing.errors import BadRequest

EVENT = Event(
    id="1",
    source="/shop/orders",
    type="dev.torpor.inference.requested.v1",
    subject="job_1",
    extensions={"model": "tiny", "tenant": "acme"},
)


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "requests-tiny"},
        "spec": {"broker": "default", "subscriber": {"uri": "http://predictor/"}} | spec,
    }


class TestFilters:
    @pytest.mark.parametrize(
        ("expression", "holds"),
        [
            ({"exact": {"model": "tiny"}}, True),
            ({"exact": {"model": "large"}}, False),
            ({"exact": {"model": "tiny", "tenant": "acme"}}, True),
            ({"exact": {"model": "tiny", "tenant": "other"}}, False),
            ({"exact": {"missing": "x"}}, False),
            ({"exact": {"model": ""}}, True),
            ({"exact": {"missing": ""}}, False),
            ({"prefix": {"type": "dev.torpor."}}, True),
            ({"prefix": {"type": "com."}}, False),
            ({"prefix": {"missing": "x"}}, False),
            ({"suffix": {"type": ".v1"}}, True),
            ({"suffix": {"type": ".v2"}}, False),
            ({"suffix": {"source": "orders"}}, True),
            ({"all": [{"exact": {"model": "tiny"}}, {"suffix": {"type": ".v1"}}]}, True),
            ({"all": [{"exact": {"model": "tiny"}}, {"suffix": {"type": ".v2"}}]}, False),
            ({"any": [{"exact": {"model": "large"}}, {"suffix": {"type": ".v1"}}]}, True),
            ({"any": [{"exact": {"model": "large"}}, {"suffix": {"type": ".v2"}}]}, False),
            ({"not": {"exact": {"model": "large"}}}, True),
            ({"not": {"exact": {"model": "tiny"}}}, False),
            ({"not": {"exact": {"missing": "x"}}}, True),
            ({"not": {"any": [{"not": {"exact": {"model": "tiny"}}}]}}, True),
            ({"exact": {"specversion": "1.0"}}, True),
        ],
        ids=str,
    )
    def test_an_expression_holds_or_not(self, expression: dict[str, Any], holds: bool) -> None:
        assert matches(expression, EVENT) == holds

    def test_a_trigger_wants_what_passes_all_its_filters(self) -> None:
        one, other = {"exact": {"model": "tiny"}}, {"prefix": {"source": "/other"}}

        assert parse_trigger(manifest(filters=[one])).matches(EVENT)
        assert not parse_trigger(manifest(filters=[one, other])).matches(EVENT)

    def test_a_trigger_without_a_filter_wants_everything(self) -> None:
        assert parse_trigger(manifest()).matches(EVENT)

    def test_the_old_filter_is_an_exact_one(self) -> None:
        trigger = parse_trigger(manifest(filter={"attributes": {"model": "tiny"}}))

        assert trigger.matches(EVENT)
        assert trigger.filters == ({"exact": {"model": "tiny"}},)

    def test_filters_win_over_the_old_filter(self) -> None:
        trigger = parse_trigger(
            manifest(
                filter={"attributes": {"model": "large"}}, filters=[{"exact": {"model": "tiny"}}]
            )
        )

        assert trigger.matches(EVENT)

    @pytest.mark.parametrize(
        "expression",
        [
            {},
            {"exact": {}},
            {"exact": {"Type": "t"}},
            {"exact": {"my-id": "t"}},
            {"exact": {"1id": "t"}},
            {"exact": {"": "t"}},
            {"prefix": {"type": ""}},
            {"suffix": {"type": ""}},
            {"all": []},
            {"any": []},
            {"not": {}},
            {"exact": {"type": "t"}, "prefix": {"type": "t"}},
            {"cesql": "type = 't'"},
            {"any": [{"exact": {"type": "t"}}, {"exact": {"UP": "t"}}]},
        ],
        ids=str,
    )
    def test_a_filter_that_knatives_webhook_refuses_is_refused(self, expression: Any) -> None:
        with pytest.raises(BadRequest) as refused:
            parse_trigger(manifest(filters=[expression]))

        assert refused.value.field == "spec.filters"

    @given(
        st.recursive(
            st.one_of(
                st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.text(max_size=3))
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2),
                st.dictionaries(
                    st.sampled_from(["exact", "prefix", "suffix", "all", "any", "not", "cesql"]),
                    inner,
                    max_size=2,
                ),
            ),
        )
    )
    def test_a_filter_is_refused_when_read_or_can_be_judged(self, expression: Any) -> None:
        try:
            trigger = parse_trigger(manifest(filters=[expression]))
        except BadRequest as error:
            assert error.field.startswith("spec.filters")  # noqa: PT017
        else:
            assert trigger.matches(EVENT) in (True, False)


class TestDeliverySpec:
    def test_every_field_has_knatives_meaning(self) -> None:
        spec = parse_delivery(
            {
                "retry": 7,
                "backoffPolicy": "linear",
                "backoffDelay": "PT1.5S",
                "timeout": "PT1H",
                "retryAfterMax": "PT2M",
                "deadLetterSink": {"uri": "http://sink/"},
            }
        )

        assert (spec.retry, spec.backoff_policy) == (7, BackoffPolicy.LINEAR)
        assert (spec.backoff_delay_s, spec.timeout_s, spec.retry_after_max_s) == (1.5, 3600, 120)
        assert spec.dead_letter_sink == "http://sink/"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"retry": -1}, "retry"),
            ({"retry": "many"}, "retry"),
            ({"backoffPolicy": "quadratic"}, "backoffPolicy"),
            ({"backoffDelay": "soon"}, "backoffDelay"),
            ({"backoffDelay": "-PT1S"}, "backoffDelay"),
            ({"timeout": "PT0S"}, "timeout"),
            ({"timeout": "-PT5S"}, "timeout"),
            ({"format": "json"}, "format"),
            ({"deadLetterSink": {"ref": {"kind": "Service", "name": "x"}}}, "deadLetterSink"),
        ],
        ids=str,
    )
    def test_an_unsupported_trigger_field_is_refused_by_name(
        self, changes: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_delivery(changes)

        assert field in caught.value.field


class TestTriggers:
    def test_parallelism_is_an_annotation(self) -> None:
        document = manifest()
        document["metadata"]["annotations"] = {"torpor.dev/parallelism": "16"}

        assert parse_trigger(document).parallelism == 16
        assert parse_trigger(manifest()).parallelism == 1

    @pytest.mark.parametrize("value", ["0", "-1", "many"])
    def test_no_parallelism_is_refused(self, value: str) -> None:
        document = manifest()
        document["metadata"]["annotations"] = {"torpor.dev/parallelism": value}

        with pytest.raises(BadRequest, match="parallelism"):
            parse_trigger(document)

    @pytest.mark.parametrize(
        "broken",
        [{}, {"metadata": {"name": "x"}}, manifest(subscriber={"ref": {"name": "x"}})],
        ids=["empty", "no spec", "subscriber by reference"],
    )
    def test_a_trigger_without_name_or_address_is_refused(self, broken: dict[str, Any]) -> None:
        with pytest.raises(BadRequest, match="subscriber"):
            parse_trigger(broken)
