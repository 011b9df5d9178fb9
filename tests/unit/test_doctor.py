"""`msl doctor`: how what was found is judged, and what a user sees of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from msl.actors.doctor import Finding
from msl.cli import doctor as command
from msl.cli import main
from msl.net.host_facts import (
    MISSING,
    THIS_MACHINE,
    ClockReading,
    LinkFacts,
    check_clock,
    check_links,
    check_packages,
    check_versions,
)
from msl.net.probe import Reach, check_reach
from msl.net.requirements import Check
from msl.net.sid_probe import DATAGRAMS, Knock, unproven
from msl.plan.addressing import Sid

HERE = {"python": "3.11.7", "msl": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}
SID = Sid(IPv6Address("fd00:6d73:6c:2:2::"))
TARGET = IPv4Address("10.0.0.2")
LACK = Check("capabilities", False, "missing: CAP_BPF", "run as root")
FINE = Check("IPv6 enabled", True, "enabled", "")


def test_equal_versions_are_fine_on_every_host() -> None:
    checks = check_versions({"n0": HERE, "n1": HERE}, HERE)
    assert list(checks) == ["n0", "n1"]
    assert all(check.ok for check in checks.values())


def test_the_host_with_another_version_is_named_with_the_version_of_the_others() -> None:
    checks = check_versions({"n0": HERE, "n1": {**HERE, "torch": "2.9.0"}, "n2": HERE}, HERE)
    assert [host for host, check in checks.items() if not check.ok] == ["n1"]
    assert checks["n1"].found == "torch 2.9.0, elsewhere 2.13.0"
    assert checks["n1"].remedy == "python -m pip install torch==2.13.0"


def test_this_machine_can_be_the_odd_one() -> None:
    newer = {**HERE, "msl": "0.2.0"}
    checks = check_versions({"n0": newer, "n1": newer}, HERE)
    assert [host for host, check in checks.items() if not check.ok] == [THIS_MACHINE]
    assert checks[THIS_MACHINE].remedy == "install msl 0.2.0"


def test_where_versions_are_evenly_split_this_machine_is_right() -> None:
    checks = check_versions({"n0": {**HERE, "ray": "2.9.0"}}, HERE)
    assert [host for host, check in checks.items() if not check.ok] == ["n0"]


def test_a_package_that_a_host_lacks_is_told() -> None:
    lacking = {name: version for name, version in HERE.items() if name != "torch"}
    assert check_versions({"n0": HERE, "n1": lacking}, HERE)["n1"].found == f"torch {MISSING}, elsewhere 2.13.0"
    check = check_packages({**HERE, "torch": MISSING})
    assert (check.ok, check.remedy) == (False, "python -m pip install torch")
    assert check_packages(HERE).ok


@pytest.mark.parametrize(("ahead_s", "ok"), [(0.0, True), (0.9, True), (-0.9, True), (1.2, False), (-86_400.0, False)])
def test_a_clock_that_goes_wrong_by_more_than_a_second_is_told(ahead_s: float, ok: bool) -> None:
    # Question and answer take 40 ms each: seen naively, a right clock would be 40 ms off.
    check = check_clock([ClockReading(100.0, 100.04 + ahead_s, 100.08)])
    assert check.ok is ok
    assert f"{1e3 * ahead_s:+.1f} ms" in check.found.replace("-0.0", "+0.0")
    assert ("set-ntp" in check.remedy) is not ok


def test_a_slow_answer_does_not_make_a_clock_wrong() -> None:
    slow, fast = ClockReading(100.0, 103.9, 104.0), ClockReading(200.0, 200.0015, 200.001)
    assert check_clock([slow]).ok  # 1.9 s ahead or not at all: who knows
    assert "+1.0 ms" in check_clock([slow, fast, slow]).found


def test_interfaces_are_judged_in_the_order_in_which_they_are_mended() -> None:
    links = [
        LinkFacts("eth7", 0),
        LinkFacts("eth1", 1500, up=False),
        LinkFacts("eth2", 1500, carrier=False),
        LinkFacts("eth3", 1500, ipv6=False),
        LinkFacts("eth4", 9000, ipv6=False),
        LinkFacts("eth5", 9000),
    ]
    found = [check.found for check in check_links(links, 9000)]
    there = ["MTU 1500, needed are 9000", "IPv6 is disabled", "up, MTU 9000"]
    assert found == ["there is none", "is down", "has no carrier", *there]


@pytest.mark.parametrize(
    ("reach", "found", "remedy"),
    [
        (Reach(9000, 9000, 0.2, ""), "in one piece, 0.2 ms", ""),
        (Reach(9000, 0, 0.0, ""), "unreachable (no answer)", "ip route get 10.0.0.2"),
        (Reach(9000, 0, 0.0, "No route to host"), "unreachable (No route to host)", "give n1 that address"),
        (Reach(0, 0, 0.0, ""), "unreachable (no answer)", "on n0"),
        (Reach(9000, 1400, 0.2, "Message too long"), "at most 1400 bytes get through", "{name: n1, mtu: 1400}"),
        (Reach(9000, 1400, 0.2, ""), "at most 1400 bytes get through, and nobody says so", "mtu 9000"),
    ],
)
def test_a_reach_is_told_with_its_remedy(reach: Reach, found: str, remedy: str) -> None:
    check = check_reach("n0", "n1", TARGET, reach)
    assert (check.ok, check.found) == (not remedy, found)
    assert remedy in check.remedy


def test_an_mtu_that_ipv6_does_not_allow_is_not_recommended() -> None:
    assert "hosts" not in check_reach("n0", "n1", TARGET, Reach(9000, 900, 0.2, "")).remedy


class Proxies:
    """Counters of proxies that get only some of what is sent."""

    def __init__(self, lost: Sequence[str] = (), lose_first: int = 0, silent: Sequence[str] = ()) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.rounds: list[list[Knock]] = []
        self._lost, self._lose_first, self._silent = lost, lose_first, silent

    def send(self, knocks: Sequence[Knock]) -> dict[Knock, str]:
        self.rounds.append(list(knocks))
        for knock in knocks:
            first = min(self._lose_first, DATAGRAMS)
            self._lose_first -= first
            if knock.prober not in self._lost:
                self._count(knock.target)[knock.reason] += DATAGRAMS - first
        return {knock: "cannot send: no route" for knock in knocks if knock.prober == "cut-off"}

    def drops(self, hosts: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return {host: dict(self._count(host)) for host in hosts if host not in self._silent}

    def _count(self, host: str) -> dict[str, int]:
        return self.counts.setdefault(host, {"no_srh": 7, "not_ipv6": 0})


def try_all(knocks: Sequence[Knock], proxies: Proxies, monkeypatch: pytest.MonkeyPatch) -> dict[Knock, str]:
    monkeypatch.setattr("msl.net.sid_probe._COUNTED_S", 0.01)
    return unproven(knocks, proxies.send, proxies.drops)


def test_of_those_who_knock_at_the_same_host_the_one_that_is_not_heard_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knocks = [Knock(prober, "n1", SID) for prober in ("n0", "n2", "n3")]
    proxies = Proxies(lost=["n2"])
    assert list(try_all(knocks, proxies, monkeypatch)) == [knocks[1]]
    assert all(len({knock.target for knock in together}) == len(together) for together in proxies.rounds)


def test_a_single_lost_datagram_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_all([Knock("n0", "n1", SID)], Proxies(lose_first=1), monkeypatch) == {}


def test_an_agent_that_falls_silent_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    knocks = [Knock("n0", "n1", SID), Knock("n1", "n0", SID)]
    assert list(try_all(knocks, Proxies(silent=["n1"]), monkeypatch)) == knocks[:1]


def test_what_cannot_be_sent_is_told_with_its_reason_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = Proxies(lost=["cut-off"])
    knock = Knock("cut-off", "n1", SID)
    assert try_all([knock], proxies, monkeypatch) == {knock: "cannot send: no route"}
    assert len(proxies.rounds) == 1


def msl(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def write_job(folder: Path, **settings: object) -> str:
    job = {"model": {"factory": "a:b"}, "data": {"factory": "a:b"}, "split": {"stages": 2}, **settings}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return str(folder / "job.yaml")


def test_help_teaches_with_examples() -> None:
    shown = msl("doctor", "--help")
    assert shown.exit_code == 0
    assert sum(line.strip().startswith("msl doctor") for line in shown.output.splitlines()) == 2
    assert "doctor" in msl("--help").output


def test_all_needs_met_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "local_checks", lambda: [FINE])
    done = msl("doctor")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "all 2 needs are met"


def test_a_lack_ends_with_4_a_row_with_its_remedy_and_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "local_checks", lambda: [LACK, FINE])
    done = msl("doctor")
    assert done.exit_code == 4
    (row,) = [line.split("  ") for line in done.stdout.splitlines() if line.startswith(LACK.need)]
    assert [cell.strip() for cell in row if cell.strip()] == [LACK.need, "FAIL", LACK.found, LACK.remedy]
    (closing,) = done.stderr.splitlines()
    assert closing.startswith("msl: 1 of 3 needs are not met; ")
    assert "fabric direct" in closing


@pytest.mark.parametrize(
    ("fabric", "code", "meaning"),
    [("auto", 4, "will use plain TCP"), ("sfc", 4, "cannot have the fabric sfc"), ("direct", 0, "")],
)
def test_what_a_lack_means_depends_on_the_fabric_that_is_asked_for(
    fabric: str, code: int, meaning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "local_checks", lambda: [LACK])
    done = msl("doctor", "--config", write_job(tmp_path, fabric=fabric, cluster={"name": f"none-{fabric}"}))
    assert done.exit_code == code
    assert meaning in done.stderr
    assert f"no cluster 'none-{fabric}' is running" in done.stdout


def test_options_that_need_a_config_say_so() -> None:
    for options in (["--start"], ["--set", "fabric=direct"]):
        done = msl("doctor", *options)
        assert done.exit_code == 2
        assert "need --config" in done.stderr


def test_many_pairs_are_summed_up_and_those_that_fail_stay() -> None:
    many = [Finding(f"n{i} -> n0", FINE) for i in range(1, 20)]
    assert len(command._pair_rows(many[:12])) == 12
    assert command._pair_rows(many) == [("all", "addresses and SIDs", "pass", "19 checks", "")]
    rows = command._pair_rows([*many, Finding("n0 -> n7", LACK)])
    assert [row[0] for row in rows] == ["n0 -> n7", "the others"]
    assert rows[0][-1] == "run as root"


def test_without_a_config_neither_torch_nor_ray_is_loaded() -> None:
    code = (
        "import sys; from msl.cli import doctor; doctor.local_checks = lambda: []\n"
        "try: doctor.doctor([])\n"
        "except SystemExit as end: print(end.code, *sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout.splitlines()[-1] == "0", ran.stderr
