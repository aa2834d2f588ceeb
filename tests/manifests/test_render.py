"""What is committed under manifests/ is the render of manifests/values.yaml, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from knative.deploy.emit import because, document, plain
from knative.deploy.render.render import differences, write
from knative.deploy.render.tree import files
from knative.deploy.values import Values, ValuesError, load_values

MANIFESTS = Path(__file__).parents[2] / "manifests"


def test_committed_manifests_equal_the_render_of_the_values() -> None:
    values = load_values(MANIFESTS / "values.yaml")

    assert differences(MANIFESTS, values) == []


def test_the_committed_values_are_the_defaults() -> None:
    assert load_values(MANIFESTS / "values.yaml") == Values()


def test_the_render_is_the_same_every_time() -> None:
    assert files(Values()) == files(Values())


def test_write_repairs_changed_missing_and_stale_files(tmp_path: Path) -> None:
    write(tmp_path, Values())
    (tmp_path / "base/api.yaml").write_text("changed by hand")
    (tmp_path / "base/redis.yaml").unlink()
    (tmp_path / "components/queue/old.yaml").write_text("from an older version")

    repaired = write(tmp_path, Values())

    assert {(d.path, d.kind) for d in repaired} == {
        ("base/api.yaml", "changed"),
        ("base/redis.yaml", "missing"),
        ("components/queue/old.yaml", "stale"),
    }
    assert differences(tmp_path, Values()) == []


def test_every_file_is_yaml_that_says_where_it_comes_from() -> None:
    for path, text in files(Values()).items():
        assert text.startswith("# Written by `torpor render`"), path
        assert list(yaml.safe_load_all(text)), path


def test_no_manifest_holds_a_secret() -> None:
    kinds = {
        document["kind"]
        for text in files(Values()).values()
        for document in yaml.safe_load_all(text)
        if "kind" in document
    }

    assert "Secret" not in kinds
    assert "secretGenerator" not in "".join(files(Values()).values())


def test_changing_the_one_number_changes_every_hop() -> None:
    longer = files(Values(max_job_seconds=7200))
    usual = files(Values())

    assert {path for path in usual if usual[path] != longer[path]} >= {
        "base/settings.yaml",
        "components/serverless/kustomization.yaml",
        "components/serverless/triggers.yaml",
        "components/queue/kustomization.yaml",
        "components/queue/triggers.yaml",
        "components/broker-rabbitmq/broker.yaml",
        "components/broker-kafka/broker.yaml",
        "components/ingress/ingress.yaml",
        "components/karpenter/node-pool.yaml",
        "cluster/knative-serving/config-defaults.yaml",
        "cluster/knative-serving/activator-grace.yaml",
    }


def test_older_kserve_gets_the_older_mode_names() -> None:
    old = Values.model_validate({"platform": {"kserve": "0.15"}})

    rendered = "".join(files(old).values())

    assert "RawDeployment" in rendered
    assert "Serverless" in rendered
    assert "deploymentMode: Standard" not in rendered


def test_comments_stand_above_their_value_and_do_not_change_the_data() -> None:
    resource = {
        "a": because(1, "one"),
        "l": [because({"x": because("y", "inner"), "z": []}, "outer"), "k", [1, 2], "two\nlines\n"],
        "m": {},
        "text": "no\nnewline at the end",
        "looks like": "true",
        "n": None,
        "k: v": "- x",
    }

    text = document(resource, resource)

    assert list(yaml.safe_load_all(text)) == [plain(resource)] * 2
    assert text.startswith("# one\na: 1\n")
    assert "  # outer\n  # inner\n  - x: 'y'\n" in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("max_job_seconds: 5", "max_job_seconds", id="too short"),
        pytest.param("max_job_secs: 5", "max_job_secs", id="unknown field"),
        pytest.param("model: {name: Bad_Name}", "model.name", id="not a DNS label"),
        pytest.param("model: {concurrency: 2000}", "model.concurrency", id="over Knative's cap"),
        pytest.param("images: {tag: latest}", "images.tag", id="not pinned"),
        pytest.param("max_replica: 5", "did you mean max_replicas", id="nearly a field"),
        pytest.param(
            "store: {backup: s3://x}", "did you mean backup_url", id="nearly a part's field"
        ),
        pytest.param("max_replicas: 4\nmax_replicas: 5", "stands there twice", id="a key twice"),
        pytest.param("model: {name: a, name: b}", "name stands there twice", id="twice inside"),
        pytest.param("max_replicas: yes", "true or false", id="a number that YAML reads as true"),
        pytest.param("host: https://a.example", "no https://", id="a host with its scheme"),
        pytest.param("model: {uri: Qwen/Qwen3-8B}", "hf://", id="weights without a scheme"),
        pytest.param("more_models: {name: a}", "must be a list", id="models that are no list"),
        pytest.param("- a", "mapping", id="not a mapping"),
        pytest.param("a: [", "not YAML", id="not YAML"),
    ],
)
def test_wrong_values_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)

    with pytest.raises(ValuesError, match=named):
        load_values(path)


def test_a_missing_file_of_values_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValuesError, match="cannot be read"):
        load_values(tmp_path / "nowhere.yaml")
