"""From the samples of a benchmark to medians, ratios, and files."""

import csv
import json
from pathlib import Path

import pytest

from msl.bench.report import Report, claimed, ratio_lines, summary, write
from msl.bench.result import Ratio, Sample, Spread, ratios, spread, take_turns, values
from msl.bench.size import LARGEST, name, parse_sizes, show
from msl.errors import ConfigError

RATIO = Ratio("fast_over_slow_{case}", "fast", "slow")


def sample(turn: int, side: str, value: float, case: str = "1mib", place: int = 0) -> Sample:
    return Sample(turn, place, case, side, value, {"seconds": value / 2})


def make_report(samples: list[Sample]) -> Report:
    return Report(
        bench="toy",
        title="A toy",
        command="msl bench toy --rounds 3",
        machine={"CPU": "one", "cores": "2"},
        quantity="rate_mib_s",
        measured="Something.",
        cases={"1mib": "1 MiB", "2mib": "2 MiB"},
        sides={"fast": "goes fast.", "slow": "goes slowly."},
        samples=samples,
        ratios=[RATIO],
        findings=["Both arrive."],
    )


# The machine is four times slower in round 2, and ten times slower for one side in round 3.
SAMPLES = [
    *(sample(turn, "fast", value) for turn, value in ((1, 40.0), (2, 10.0), (3, 4.0))),
    *(sample(turn, "slow", value, place=1) for turn, value in ((1, 20.0), (2, 5.0), (3, 20.0))),
    *(sample(turn, side, 300.0, case="2mib") for turn in (1, 2, 3) for side in ("fast", "slow")),
]


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratios(SAMPLES, "1mib", RATIO) == [2.0, 2.0, 0.2]
    assert spread(ratios(SAMPLES, "1mib", RATIO)).median == 2.0
    assert spread(values(SAMPLES, "1mib", "fast")).median / spread(values(SAMPLES, "1mib", "slow")).median == 0.5


def test_a_round_that_lacks_a_side_gives_no_ratio() -> None:
    samples = [sample(1, "fast", 3.0), sample(2, "fast", 8.0), sample(2, "slow", 2.0)]
    assert ratios(samples, "1mib", RATIO) == [4.0]


def test_the_spread_holds_the_middle_of_the_values() -> None:
    assert spread([float(value) for value in range(11)]) == Spread(5.0, 1.0, 9.0, 11)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ConfigError, match="at least one round"):
        spread([])


def test_the_order_of_the_sides_is_reversed_from_round_to_round() -> None:
    orders = [[side for _, side in take_turns("ABC", turn)] for turn in range(4)]
    assert orders == [["A", "B", "C"], ["C", "B", "A"], ["A", "B", "C"], ["C", "B", "A"]]
    assert [place for place, _ in take_turns("ABC", 1)] == [0, 1, 2]


def test_the_summary_has_each_ratio_by_its_name() -> None:
    document = summary(make_report(SAMPLES))
    assert document["fast_over_slow_1mib"] == 2.0
    assert document["fast_over_slow_2mib"] == 1.0
    assert document["ratio_spread"]["fast_over_slow_1mib"] == {"p10": pytest.approx(0.56), "p90": 2.0}
    assert document["rate_mib_s"]["1mib"]["slow"]["median"] == 20.0
    assert document["rounds"] == 3


def test_all_files_are_written(tmp_path: Path) -> None:
    document = write(tmp_path, make_report(SAMPLES))
    assert json.loads((tmp_path / "summary.json").read_text()) == document
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rate_mib_s"]) for row in rows] == [one.value for one in SAMPLES]
    assert rows[3] == {
        "round": "1",
        "place": "1",
        "case": "1mib",
        "side": "slow",
        "rate_mib_s": "20.0",
        "seconds": "10.0",
    }


def test_the_page_tells_medians_ratios_machine_and_command(tmp_path: Path) -> None:
    write(tmp_path, make_report(SAMPLES))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert "Made by `msl bench toy --rounds 3`." in lines
    assert "|  | fast | slow |" in lines
    assert "| 1 MiB | 10 (5.2 to 34) | 20 (8 to 20) |" in lines
    assert "| 2 MiB | 300 (300 to 300) | 300 (300 to 300) |" in lines
    assert "| 1 MiB | 2 (0.56 to 2) |" in lines
    assert "| CPU | one |" in lines
    assert "Both arrive." in lines


def test_the_medians_of_the_ratios_are_told_in_a_line_each() -> None:
    assert ratio_lines(make_report(SAMPLES)) == ["1 MiB: fast / slow 2", "2 MiB: fast / slow 1"]


def test_results_are_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(tmp_path / "new" / "one"):
            pass
    (tmp_path / "new" / "one" / "results.csv").touch()
    with pytest.raises(ConfigError, match=r"--out .*one: is not empty"), claimed(tmp_path / "new" / "one"):
        pass


def test_a_failed_benchmark_leaves_no_new_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in ("old", "new"):
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path / folder):
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file: cannot be made"), claimed(tmp_path / "file"):
        pass


def test_sizes_are_read_and_shown() -> None:
    assert parse_sizes("1MiB,64KiB, 2 mib,1024KiB") == [65536, 1048576, 2097152]
    assert [show(64 * 2**10), show(3 * 2**20), show(1536 * 2**10)] == ["64 KiB", "3 MiB", "1536 KiB"]
    assert name(4 * 2**20) == "4mib"


def test_small_sizes_are_bytes() -> None:
    assert parse_sizes("1KiB,64B", smallest=64) == [64, 1024]
    assert [show(64), show(1500)] == ["64 B", "1500 B"]
    assert [name(64), name(2048)] == ["64", "2kib"]
    with pytest.raises(ConfigError, match="sizes from 64B to 256MiB are possible"):
        parse_sizes("32B", smallest=64)
    with pytest.raises(ConfigError, match="70B is no multiple of 4 bytes"):
        parse_sizes("70B", smallest=64)


@pytest.mark.parametrize("text", ["", "4", "4MB", "4MiB,", "0KiB", "64B", f"{LARGEST // 2**20 + 1}MiB", "-1MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--sizes"):
        parse_sizes(text)
