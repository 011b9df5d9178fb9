"""The built-in local cluster: one raylet per host, all on this machine, each with its own loopback address."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from msl.actors import owned
from msl.config import Config, load_config, to_yaml
from msl.errors import ClusterError
from msl.net import testbed
from msl.net.namespace import may_manage_networks
from msl.net.netns import netns_path
from msl.net.testbed import Testbed
from msl.plan import DomainPlan, lay_domain

STATE_FILE = "cluster.json"
CONFIG_FILE = "config.yaml"
_STOP_S = 5.0
_BROKEN_STOP_S = 0.2


@dataclass(frozen=True)
class LocalHost:
    """One raylet."""

    name: str
    address: str
    cpus: int
    pid: int
    """The `ray start --block` process that owns the raylet."""
    netns: str | None = None
    """Name of its network namespace on the testbed; without one, it is in that of the cluster."""
    interfaces: tuple[str, ...] = ()
    """Its interfaces to the SR domain."""


@dataclass(frozen=True)
class LocalCluster:
    """A running local cluster, as its state file tells."""

    name: str
    cluster_id: str
    folder: str
    gcs: str
    """`ADDRESS:PORT` of the head."""
    private: bool
    """Whether it has a network namespace of its own."""
    keeper: int
    """Process whose end is to end the cluster; 0 if it is kept until `msl down`."""
    hosts: tuple[LocalHost, ...]
    testbed: bool = False
    """Whether the hosts are those of a testbed of the same name."""

    @property
    def token_path(self) -> Path:
        """File with the token of this cluster's Ray."""
        return Path(self.folder) / "token"

    def domain(self) -> DomainPlan:
        """The SR domain of the testbed that the hosts are on: that of the configuration which started it."""
        config = load_config(Path(self.folder) / CONFIG_FILE)
        return lay_domain(config, [host.name for host in self.hosts])

    def dead_hosts(self) -> list[LocalHost]:
        """Hosts whose raylet's owner is gone."""
        return [host for host in self.hosts if not owned.is_alive(host.pid, self.cluster_id)]

    def log_tail(self, host: LocalHost) -> str:
        """The last line that a host's `ray start` wrote."""
        lines = _log_path(Path(self.folder), host.name).read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def home() -> Path:
    """Where this user's clusters keep their state; short, for the sake of socket paths."""
    return Path("/tmp") / f"msl-{os.getuid()}"


def state_folder(name: str) -> Path:
    """State and raylets' temporary folders of one cluster."""
    return home() / f"{zlib.crc32(name.encode()):08x}"


def find(name: str) -> LocalCluster | None:
    """The kept cluster of that name, running or left behind by a crash; None if there is none."""
    return _read_state(state_folder(name))


def _read_state(folder: Path) -> LocalCluster | None:
    path = folder / STATE_FILE
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path}: cannot be read ({error}); remove its folder if no cluster is running") from error
    hosts = tuple(LocalHost(**host | {"interfaces": tuple(host["interfaces"])}) for host in tree.pop("hosts"))
    return LocalCluster(**tree, hosts=hosts)


def default_cpus(hosts: Sequence[str]) -> int:
    """Equal share of this machine's CPUs, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // len(hosts))


def cpus_of(config: Config, hosts: Sequence[str]) -> dict[str, int]:
    """CPUs of each host, as configured or an equal share of the machine."""
    asked = {host.name: host.cpus for host in config.hosts}
    return {name: asked.get(name) or default_cpus(hosts) for name in hosts}


def start(
    config: Config, hosts: Sequence[str], private: bool, keep: bool, built: Testbed | None = None
) -> LocalCluster:
    """Start a raylet for each host in its network namespace, in parallel; on failure nothing stays.

    Args:
        config: names, CPUs and deadlines.
        hosts: the hosts' names; the first is the head.
        private: whether the namespace is the cluster's own.
        keep: whether the cluster stays when this process ends.
        built: testbed whose hosts they are; by default all are in this process's namespace.

    Raises:
        ClusterError: a raylet did not start in time; the message has its last words.
    """
    # A cluster that is not kept has a name of its own, so that runs at the same time do not meet.
    name = config.cluster.name if keep else f"{config.cluster.name}-{os.getpid()}"
    folder = state_folder(name)
    _make_folder(folder)
    (folder / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    cluster_id = secrets.token_hex(8)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    there = {host.name: host for host in built.hosts} if built is not None else {}
    addresses = [
        there[host].address if there else f"127.0.{1 + index // 200}.{10 + index % 200}"
        for index, host in enumerate(hosts)
    ]
    gcs = f"{addresses[0]}:{_free_port(addresses[0])}"
    cpus = cpus_of(config, hosts)
    environment = _environment(cluster_id, token)
    started: list[LocalHost] = []
    keeper = 0 if keep else os.getpid()

    def cluster() -> LocalCluster:
        return LocalCluster(name, cluster_id, str(folder), gcs, private, keeper, tuple(started), bool(there))

    try:
        for index, (host, address) in enumerate(zip(hosts, addresses, strict=True)):
            place = there.get(host)
            command = _ray_start(config, folder, index, host, address, cpus[host], gcs)
            command = [*_wrapping(None if place is None else place.netns, keep), *command]
            with _log_path(folder, host).open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            where = (None, ()) if place is None else (place.netns, place.interfaces)
            started.append(LocalHost(host, address, cpus[host], process.pid, *where))
            _write_state(folder, cluster())
        _await_gcs(cluster(), config.timeouts.start_s)
    except BaseException:
        stop(cluster())
        raise
    return cluster()


def stop(cluster: LocalCluster) -> int:
    """End all of a cluster's processes and remove its folder; returns how many had to be killed."""
    # The head last: raylets that lose it first would wait for it.
    order = [host.pid for host in reversed(cluster.hosts)]
    # Raylets that have lost a host try to reach it until the deadline: nothing is gained by waiting for them.
    killed = owned.end(cluster.cluster_id, order, _BROKEN_STOP_S if cluster.dead_hosts() else _STOP_S)
    for host in cluster.hosts:
        with contextlib.suppress(ChildProcessError):  # reaps our own children; those of another process are init's
            os.waitpid(host.pid, os.WNOHANG)
    if cluster.testbed:
        testbed.remove(cluster.name)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the last cluster's end removes the user's folder, too
        Path(cluster.folder).parent.rmdir()
    return killed


def stop_stale() -> list[str]:
    """Remove what crashed runs left behind: clusters whose process is gone, or whose raylets are; their names."""
    stale = []
    for folder in sorted(home().glob("*")):
        cluster = _read_state(folder)
        if cluster is None:
            continue
        orphaned = cluster.keeper and not _exists(cluster.keeper)
        if orphaned or len(cluster.dead_hosts()) == len(cluster.hosts):
            stop(cluster)
            stale.append(cluster.name)
    for name in testbed.names() if may_manage_networks() else ():
        # Built by a run that was killed before it had a cluster: its process stands in the name.
        pid = name.rpartition("-")[2]
        if "-" in name and pid.isdecimal() and not _exists(int(pid)):
            testbed.remove(name)
            stale.append(name)
    return stale


def remove_testbed(name: str) -> list[str]:
    """Remove a testbed that has no cluster; its namespaces."""
    return testbed.remove(name) if may_manage_networks() else []


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _make_folder(folder: Path) -> None:
    parent = folder.parent
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.stat().st_uid != os.getuid() or parent.is_symlink():
        raise ClusterError(f"{parent}: belongs to somebody else; remove it")
    if (folder / STATE_FILE).exists():
        raise ClusterError(f"{folder}: a cluster of that name is there already; 'msl down' ends it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def _environment(cluster_id: str, token: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= ray_environment(token)
    environment[owned.MARK] = cluster_id
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    return environment


def ray_environment(token: Path) -> dict[str, str]:
    """Environment of Ray in this cluster, for its raylets and for a driver."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _wrapping(there: str | None, keep: bool) -> list[str]:
    """What stands before a raylet's command: it ends with its starter, and lives in its host's network."""
    # The raylets end with the process that started them, even if that one is killed.
    mortal = ["setpriv", "--pdeathsig", "TERM"] if not keep and shutil.which("setpriv") else []
    return mortal if there is None else [*mortal, "nsenter", f"--net={netns_path(there)}"]


def _ray_start(config: Config, folder: Path, index: int, name: str, address: str, cpus: int, gcs: str) -> list[str]:
    command = [_python(folder), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    if index == 0:
        port = gcs.rpartition(":")[2]
        command += ["--head", f"--port={port}", "--include-dashboard=false"]
        command += [f"--ray-client-server-port={_free_port(address)}"]
    else:
        command += [f"--address={gcs}"]
    return [
        *command,
        f"--node-ip-address={address}",
        f"--node-name={name}",
        f"--temp-dir={folder / str(index)}",
        f"--num-cpus={cpus}",
        f"--resources={json.dumps({f'msl_host:{name}': 1})}",
        f"--object-store-memory={config.cluster.object_store_mb * 1_000_000}",
        "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]


def _python(folder: Path) -> str:
    """This Python by a path without spaces, which Ray hands to a shell unquoted."""
    link = folder / "python"
    if not link.is_symlink():
        link.symlink_to(sys.prefix)
    executable = link / "bin" / Path(sys.executable).name
    return str(executable) if executable.exists() else sys.executable


def _free_port(address: str) -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def _write_state(folder: Path, cluster: LocalCluster) -> None:
    temporary = folder / f"{STATE_FILE}.new"
    temporary.write_text(json.dumps(asdict(cluster), indent=1))
    temporary.replace(folder / STATE_FILE)


def _log_path(folder: Path, host: str) -> Path:
    return folder / f"{host}.log"


def _await_gcs(cluster: LocalCluster, timeout_s: float) -> None:
    address, _, port = cluster.gcs.rpartition(":")
    deadline = time.monotonic() + timeout_s
    while True:
        for host in cluster.hosts:
            # A child that has ended stays a zombie until it is waited for, and is_alive says no then.
            if not owned.is_alive(host.pid, cluster.cluster_id) and not _just_started(host.pid):
                raise ClusterError(f"host {host.name}: ray start ended: {cluster.log_tail(host)}")
        with contextlib.suppress(OSError), socket.create_connection((address, int(port)), timeout=1.0):
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"host {cluster.hosts[0].name}: the head did not start within {timeout_s:g} s:"
                f" {cluster.log_tail(cluster.hosts[0])}"
            )
        time.sleep(0.05)


def _just_started(pid: int) -> bool:
    """Whether a child has not reached its exec yet, so that its environment is still ours."""
    return _exists(pid) and os.waitpid(pid, os.WNOHANG) == (0, 0)
