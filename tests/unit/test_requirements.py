"""What the fabric `sfc` finds lacking on a machine, and which remedy it tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from msl.errors import NetworkError
from msl.net import compiler, kernel_options, requirements

STATUS = "Name:\tpython\nCapPrm:\t000001ffffffffff\nCapEff:\t{}\nCapBnd:\t000001ffffffffff\n"
CONFIGURATION = "".join(f"CONFIG_{name}=y\n" for name in {**kernel_options.NEEDED, **kernel_options.NEEDED_BY_TESTBED})
OWN = requirements.check_capabilities(Path("/proc/self/status").read_text())
OPTIONS = {"VETH": "links of the testbed", "NET_CLS_BPF": "programs"}


def status_without(*missing: str) -> str:
    every = (1 << 41) - 1
    for name in missing:
        every &= ~(1 << requirements.CAPABILITIES[name])
    return STATUS.format(f"{every:016x}")


def test_missing_capabilities_are_named_each_with_its_flag() -> None:
    check = requirements.check_capabilities(status_without("CAP_NET_ADMIN", "CAP_BPF"))
    assert not check.ok
    assert check.found == "missing: CAP_NET_ADMIN, CAP_BPF"
    assert check.remedy.endswith("--cap-add=NET_ADMIN --cap-add=BPF")


def test_all_capabilities_are_enough_and_it_is_the_effective_ones_that_count() -> None:
    assert requirements.check_capabilities(status_without()).ok
    assert not requirements.check_capabilities(STATUS.format("0" * 16)).ok


@pytest.mark.parametrize(
    ("release", "ok"),
    [("5.14.21-default", False), ("5.4.0", False), ("5.15.0-91-generic", True), ("6.1", True), ("10.0.1", True)],
)
def test_the_kernels_version_is_compared_as_numbers(release: str, ok: bool) -> None:
    assert requirements.check_linux(release).ok is ok


@pytest.mark.parametrize(("version", "ok"), [("0.8.1", False), ("0.9.7", True), ("0.10", True), ("0.9.post1", True)])
def test_pyroute2s_version_is_compared_as_numbers(version: str, ok: bool) -> None:
    assert requirements.check_pyroute2(version).ok is ok


def test_ipv6_switched_off_is_told_with_the_sysctl(tmp_path: Path) -> None:
    switch = tmp_path / "disable_ipv6"
    assert not requirements.check_ipv6(switch).ok
    switch.write_text("1\n")
    assert requirements.check_ipv6(switch).remedy == "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
    switch.write_text("0\n")
    assert requirements.check_ipv6(switch).ok


@pytest.mark.parametrize("line", ["# CONFIG_NET_CLS_BPF is not set\n", "", "CONFIG_NET_CLS_BPF=n\n"])
def test_a_missing_option_is_told_with_what_needs_it(line: str) -> None:
    check = requirements.check_options(OPTIONS, "CONFIG_VETH=y\n" + line)
    assert check.found == "missing by its configuration: NET_CLS_BPF (programs)"
    assert check.remedy == "boot a kernel with CONFIG_NET_CLS_BPF=y"


def test_an_option_built_as_a_module_is_there() -> None:
    assert requirements.check_options(OPTIONS, "CONFIG_VETH=m\nCONFIG_NET_CLS_BPF=y\n").ok


def test_an_option_is_not_taken_for_another_that_begins_alike() -> None:
    assert kernel_options.missing_in("CONFIG_BPF_JIT_ALWAYS_ON=y\n", ["BPF_JIT"]) == ["BPF_JIT"]


def test_without_a_configuration_what_a_trial_shows_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_options, "in_new_namespace", lambda call: ["VETH"])
    check = requirements.check_options(OPTIONS, "")
    assert check.found == "missing by trial: VETH (links of the testbed)"


def test_where_nothing_can_be_read_or_tried_the_kernel_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: object) -> list[str]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_options, "in_new_namespace", refuse)
    check = requirements.check_options(OPTIONS, "")
    assert check.ok
    assert "unknown" in check.found
    assert not requirements.check_namespace().ok


@pytest.mark.skipif(not OWN.ok, reason=f"making things in a network namespace needs capabilities ({OWN.found})")
def test_a_trial_agrees_with_the_configuration_and_leaves_nothing() -> None:
    options = {**kernel_options.NEEDED, **kernel_options.NEEDED_BY_TESTBED}
    if not kernel_options.configuration():
        pytest.skip("this kernel does not show its configuration")
    untried = {"BPF_SYSCALL", "NET_CLS_ACT", "NET_CLS_BPF"}
    expected = kernel_options.missing_in(kernel_options.configuration(), options)
    before = Path("/proc/net/dev").read_text().count(":"), Path("/proc/thread-self/ns/net").readlink()
    assert kernel_options.missing_in_trial(options) == [name for name in expected if name not in untried]
    assert (Path("/proc/net/dev").read_text().count(":"), Path("/proc/thread-self/ns/net").readlink()) == before


def test_bcc_and_headers_that_are_absent_are_told_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise NetworkError("nothing here; run: apt-get install -y something")

    monkeypatch.setattr(compiler, "bcc_folder", absent)
    monkeypatch.setattr(compiler, "kernel_headers", absent)
    for check in (requirements.check_bcc(), requirements.check_headers()):
        assert (check.ok, check.found, check.remedy) == (False, "nothing here", "apt-get install -y something")


@pytest.mark.parametrize(
    ("stderr", "found", "remedy"),
    [
        ("Traceback\nmsl.errors.NetworkError: no bcc; run: apt-get x\n", "no bcc", "apt-get x"),
        (
            "msl.errors.NetworkError: probe.c:3: odd\n",
            "probe.c:3: odd",
            "msl -v logs all that compiler and verifier say",
        ),
        ("", "status -11", "msl -v logs all that compiler and verifier say"),
    ],
)
def test_what_ends_the_child_that_compiles_is_told(
    stderr: str, found: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -11, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    check = requirements.check_program()
    assert (check.ok, check.found, check.remedy) == (False, found, remedy)


def test_a_child_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_PROGRAM_TIMEOUT_S", 0.001)
    check = requirements.check_program()
    assert not check.ok
    assert "timed out" in check.found


def test_the_first_lack_is_told_and_nothing_after_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    old = requirements.Check("Linux", False, "2.4", "boot")
    fine = requirements.Check("capabilities", True, "all", "")
    monkeypatch.setattr(requirements, "check_capabilities", lambda status: fine)
    monkeypatch.setattr(requirements, "check_linux", lambda release: old)
    monkeypatch.setattr(requirements, "check_program", lambda: pytest.fail("tried"))
    assert requirements.first_lack() is old


def test_what_only_the_testbed_needs_is_left_out_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "check_program", lambda: requirements.Check("program", True, "", ""))
    everything = [check.need for check in requirements.local_checks()]
    on_a_host = [check.need for check in requirements.local_checks(testbed=False)]
    assert any("VETH" in need for need in everything)
    assert not any("VETH" in need or "namespaces" in need for need in on_a_host)


def test_every_lack_has_a_remedy_and_nothing_else_has() -> None:
    for check in requirements.local_checks():
        assert check.need
        assert check.found
        assert bool(check.remedy) is not check.ok


def test_a_process_without_capabilities_lacks_them_first() -> None:
    if not OWN.ok:
        assert requirements.first_lack() == OWN
        return
    code = "from msl.net.requirements import first_lack; print(first_lack().found)"
    dropped = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", code]
    told = subprocess.run(dropped, cwd=Path(compiler.__file__).parents[2], capture_output=True, text=True, check=True)
    assert told.stdout == "missing: CAP_NET_ADMIN\n"
