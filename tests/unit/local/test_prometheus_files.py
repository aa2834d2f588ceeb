"""The files of `torpor up --metrics`."""

import json
from pathlib import Path

from torpor.local.data_dir import Addresses
from torpor.local.prometheus_files import CONFIG, write_prometheus_files

FIRST = Addresses(api="http://h:1", broker="http://h:2", activator="http://h:3")
SECOND = Addresses(api="http://h:1", broker="http://h:2", activator="http://h:4")


def test_a_second_start_changes_the_targets_and_keeps_the_users_configuration(
    tmp_path: Path,
) -> None:
    write_prometheus_files(tmp_path, FIRST)
    changed = (tmp_path / CONFIG).read_text() + "# mine\n"
    (tmp_path / CONFIG).write_text(changed)
    write_prometheus_files(tmp_path, SECOND)

    targets = json.loads((tmp_path / "targets.json").read_text())
    assert [each["targets"] for each in targets] == [["h:1"], ["h:2"], ["h:4"]]
    assert (tmp_path / CONFIG).read_text() == changed
