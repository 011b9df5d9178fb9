"""What the fabric `sfc` needs of this machine, and whether it is there: each need with the command that mends it.

Checks look, or try where only trying tells; what they try vanishes with a thread or a child process. Nothing here
prints, and nothing changes the machine.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msl
from msl.errors import NetworkError
from msl.net import compiler, kernel_options

log = logging.getLogger(__name__)

CAPABILITIES = {  # bits of linux/capability.h
    "CAP_NET_ADMIN": 12,  # routes, rules, filters, transparent sockets
    "CAP_NET_RAW": 13,  # transparent sockets
    "CAP_SYS_ADMIN": 21,  # namespaces
    "CAP_PERFMON": 38,  # pointers into packets
    "CAP_BPF": 39,
}
MIN_LINUX = (5, 15)
"""bpf_redirect_neigh with a next hop came with 5.10, the MTU in the answer of bpf_fib_lookup with 5.12; 5.15 is the
oldest long-term kernel that has both."""
MIN_PYROUTE2 = (0, 9)
"""The oldest that msl is tested with."""

_PROGRAM_TIMEOUT_S = 60.0  # for a busy machine; it takes a third of a second
_PROGRAM = """\
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
static long (*redirect_neigh)(u32 interface, void *next_hop, int size, u64 flags) = (void *)BPF_FUNC_redirect_neigh;
int probe(struct __sk_buff *skb)
{
    return skb->mark == 1 ? redirect_neigh(1, 0, 0, 0) : TC_ACT_OK;
}
"""


@dataclass(frozen=True)
class Check:
    """One need, and what became of it."""

    need: str
    """What is needed, e.g. "Linux 5.15 or newer"."""
    ok: bool
    """Whether it is there."""
    found: str
    """What was found, in a few words."""
    remedy: str
    """The command or instruction that mends it; "" if ok."""


def local_checks(testbed: bool = True) -> list[Check]:
    """All needs in a fixed order, cheap ones first; less than half a second on an idle machine.

    Args:
        testbed: also what only the built-in testbed needs: namespaces, virtual links and their rates.
    """
    return list(_checks(testbed))


def first_lack(testbed: bool = True) -> Check | None:
    """The first need that is not met, None if all are; what comes after it is not looked at."""
    return next((check for check in _checks(testbed) if not check.ok), None)


def _checks(testbed: bool) -> Iterator[Check]:
    yield check_capabilities(Path("/proc/self/status").read_text())
    yield check_linux(platform.release())
    yield check_ipv6(Path("/proc/sys/net/ipv6/conf/all/disable_ipv6"))
    yield check_pyroute2(importlib.metadata.version("pyroute2"))
    testbed_options = kernel_options.NEEDED_BY_TESTBED if testbed else {}
    yield check_options(kernel_options.NEEDED | testbed_options, kernel_options.configuration())
    if testbed:
        yield check_namespace()
    yield check_bcc()
    yield check_headers()
    yield check_program()


def check_capabilities(status: str) -> Check:
    """Judge the text of /proc/PID/status: root in a container may lack what another user has been given."""
    effective = int(re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    return _check(
        "capabilities " + ", ".join(CAPABILITIES),
        not missing,
        "missing: " + ", ".join(missing) if missing else "all",
        "run as root; in a container, start it with " + " ".join(f"--cap-add={name[4:]}" for name in missing),
    )


def check_linux(release: str) -> Check:
    """Judge the kernel's release, e.g. 6.1.0-28-amd64."""
    remedy = f"boot a kernel of {_dotted(MIN_LINUX)} or newer"
    return _check(f"Linux {_dotted(MIN_LINUX)} or newer", _version(release) >= MIN_LINUX, release, remedy)


def check_ipv6(disabled: Path) -> Check:
    """IPv6 must be in the kernel and not switched off; the file is net.ipv6.conf.all.disable_ipv6."""
    need = "IPv6 enabled"
    if not disabled.exists():
        return _check(need, False, "no IPv6 in this kernel", "boot a kernel with IPv6, without ipv6.disable=1")
    on = disabled.read_text().strip() == "0"
    return _check(need, on, "enabled" if on else "disabled", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")


def check_pyroute2(version: str) -> Check:
    """Judge the version of the netlink library."""
    need = f"pyroute2 {_dotted(MIN_PYROUTE2)} or newer"
    remedy = f"{sys.executable} -m pip install --upgrade pyroute2"
    return _check(need, _version(version) >= MIN_PYROUTE2, version, remedy)


def check_options(options: dict[str, str], configuration: str) -> Check:
    """Judge the kernel by its configuration or, where that is "", by trying.

    Args:
        options: names of options, each with what needs it.
        configuration: text of lines like CONFIG_VETH=y.
    """
    need = "kernel options " + ", ".join(options)
    if configuration:
        missing, source = kernel_options.missing_in(configuration, options), "by its configuration"
    else:
        try:
            missing, source = kernel_options.missing_in_trial(options), "by trial"
        except OSError as error:
            # Other checks tell what this right is for; without it, this one must not blame the kernel.
            found = f"unknown: no configuration to read, nothing could be tried ({error.strerror})"
            return _check(need, True, found, "")
    wanted = ", ".join(f"{name} ({options[name]})" for name in missing)
    remedy = "boot a kernel with " + ", ".join(f"CONFIG_{name}=y" for name in missing)
    return _check(need, not missing, f"missing {source}: {wanted}" if missing else f"all {source}", remedy)


def check_namespace() -> Check:
    """Try to make a network namespace: containers often forbid it even to root."""
    need = "right to make network namespaces"
    try:
        kernel_options.in_new_namespace(list)
    except OSError as error:
        remedy = "run as root; in a container, start it with --cap-add=SYS_ADMIN --security-opt seccomp=unconfined"
        return _check(need, False, str(error.strerror), remedy)
    return _check(need, True, "made one", "")


def check_bcc() -> Check:
    """Look for the BPF compiler; it is loaded in `check_program` only."""
    need = "BPF compiler bcc (Debian's, not PyPI's)"
    try:
        return _check(need, True, str(compiler.bcc_folder()), "")
    except NetworkError as error:
        return _check(need, False, *_finding_and_remedy(str(error)))


def check_headers() -> Check:
    """Look for kernel headers."""
    need = "kernel headers"
    try:
        return _check(need, True, str(compiler.kernel_headers().build), "")
    except NetworkError as error:
        return _check(need, False, *_finding_and_remedy(str(error)))


def check_program() -> Check:
    """Compile and load a program in a child process: libbcc stays out of this one, and may crash there."""
    need = "a tc program compiles and loads"
    # With -c, the import path begins with the working folder: the child finds this msl, installed or not.
    command = [sys.executable, "-c", "from msl.net.requirements import load_probe; load_probe()"]
    folder = Path(msl.__file__).parents[1]
    try:
        child = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_PROGRAM_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _check(need, False, str(error), "run it again on a less busy machine")
    if child.returncode == 0:
        return _check(need, True, child.stdout.strip(), "")
    log.info("trial of the BPF compiler:\n%s", child.stderr)
    last = [f"status {child.returncode}", *child.stderr.splitlines()][-1]
    found, remedy = _finding_and_remedy(last.removeprefix("msl.errors.NetworkError: "))
    return _check(need, False, found, remedy or "msl -v logs all that compiler and verifier say")


def load_probe() -> None:
    """What `check_program` runs in its child: a line on stdout, or an error that ends the child."""
    logging.basicConfig(level=logging.DEBUG)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(_PROGRAM)
        compiler.load_program(compiler.compile_source(source, {}), "probe")
    sys.stdout.write(f"with bcc {compiler.load_bcc().__version__}\n")


def _check(need: str, ok: bool, found: str, remedy: str) -> Check:
    return Check(need, ok, found, "" if ok else remedy)


def _finding_and_remedy(message: str) -> tuple[str, str]:
    """The two halves of an error's message that ends with the command to run; the second is "" if it does not."""
    found, _, remedy = message.partition("; run: ")
    return found, remedy


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers: 6.1.0-28-amd64 is (6, 1, 0), 0.9.post1 is (0, 9)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in leading[0].split(".")) if leading else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
