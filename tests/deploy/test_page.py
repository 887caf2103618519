"""docs/deployment.md agrees with the code."""

import re
from pathlib import Path

from imqtt.config import ServerConfig, read_settings
from imqtt.core.partitions import assign
from tests.deploy import generated

PAGE = generated.PAGE.read_text()


def test_the_table_of_settings_is_current() -> None:
    assert generated.SECTION.stale() == []


def test_the_example_of_a_settings_file_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "imqtt.toml"
    path.write_text(example)
    path.chmod(0o644)  # as the page says: all users may read it
    config = ServerConfig.from_environment({}, read_settings(path))
    assert (config.workers, config.partitions) == (4, 64)


def test_the_linked_files_exist() -> None:
    links = re.findall(r"\]\((\.\./[^)#]*)\)", PAGE)
    assert len(links) > 2
    assert [link for link in links if not (generated.PAGE.parent / link).exists()] == []


def test_the_figures_of_uneven_shares_are_those_of_the_hash() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+), ([\d.]+) \|", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == ["16", "64", "128", "256", "1,024"]
    for partitions, mean, _ in rows:
        count = int(partitions.replace(",", ""))
        trials = 60_000 // count
        busiest = 0
        for trial in range(trials):
            owners = assign(count, [f"{trial}a", f"{trial}b"])
            busiest += max(owners.count(owner) for owner in set(owners))
        assert abs(busiest / trials * 2 / count - float(mean)) < 0.02
