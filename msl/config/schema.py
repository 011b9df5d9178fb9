"""The shape of a configuration file: frozen values, with a docstring under each field.

Only values that can be judged without a model or a host are checked here. What needs the model (does the
module exist that is to be cut before?) is checked when the plan is built, still before anything starts.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from msl.config.serving import ServeConfig
from msl.config.steering import SteeringConfig
from msl.config.values import Frozen, Name, Seconds

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HOST_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


def _network(value: str, prefix: int, example: str) -> ipaddress.IPv6Network:
    with contextlib.suppress(ValueError):
        network = ipaddress.IPv6Network(value)
        if network.prefixlen == prefix:
            return network
    raise ValueError(f"must be an IPv6 network of /{prefix} without host bits, e.g. {example}")


def _address(value: str, example: str) -> ipaddress.IPv6Address:
    try:
        return ipaddress.IPv6Address(value)
    except ValueError:
        raise ValueError(f"must be an IPv6 address, e.g. {example}") from None


def _repeated(names: Sequence[str]) -> int | None:
    """Index of the first name that stands twice."""
    return next((index for index, name in enumerate(names) if name in names[:index]), None)


class Factory(Frozen):
    """Something that is made by calling a Python function or class."""

    factory: str
    """Import path `package.module:name`; it must be importable on every host."""
    args: dict[str, Any] = Field(default={})
    """Keyword arguments of the call."""

    @field_validator("factory")
    @classmethod
    def _is_import_path(cls, value: str) -> str:
        if not _IMPORT_PATH.fullmatch(value):
            raise ValueError("an import path reads 'package.module:name', e.g. msl.models.resnet:resnet18")
        return value


class ModelConfig(Factory):
    """The unsplit model: any `torch.nn.Module`."""


class DataConfig(Factory):
    """The data set: a factory that returns `msl.data.Splits`."""


class SplitConfig(Frozen):
    """Where the model is cut."""

    cut: tuple[str, ...] | None = None
    """Named modules before which the model is cut, in the order of the forward pass."""
    stages: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    """Instead of `cut`: this many stages, balanced by measured forward and backward time."""
    leaf_modules: tuple[str, ...] = ()
    """Named modules that are kept whole and not traced into (for control flow that depends on data)."""

    @model_validator(mode="after")
    def _one_of_both(self) -> SplitConfig:
        if self.cut is not None and self.stages is not None:
            raise ValueError(f"stages: {self.stages}: give either 'cut' (names of modules) or 'stages', not both")
        if (index := _repeated(self.cut or ())) is not None:
            raise ValueError(f"cut[{index}]: {(self.cut or ())[index]!r}: is named twice")
        return self


class HostConfig(Frozen):
    """A machine of the cluster."""

    name: Name
    """The host's name in this file."""
    cpus: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    """CPUs that the host's stages may use. Default: an equal share of the machine on the built-in local
    cluster, what Ray says of the node on an existing one."""
    ray_node: str | None = None
    """Existing cluster only: the Ray node's name (`ray start --node-name`). Default: `name`."""
    address: str | None = None
    """Address on which the host's NSFs listen. Default: the address of the host's Ray node."""

    interfaces: tuple[str, ...] = ()
    """Existing cluster and fabric `sfc` only: the host's interfaces that lead to the SR domain, e.g. [eth1]."""
    locator: str | None = None
    """Fabric `sfc`: the /64 that the SR domain routes to this host. Default: derived from `sr.block`."""
    mtu: Annotated[int, Field(strict=True, ge=1280, le=65_535)] | None = None
    """Fabric `sfc`: MTU of the host's way through the SR domain. Default: the smallest of its interfaces' MTUs."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ValueError("must be an IPv4 or IPv6 address of the host, e.g. 10.0.0.2") from None
        return value

    @field_validator("locator")
    @classmethod
    def _is_locator(cls, value: str | None) -> str | None:
        return value if value is None else str(_network(value, 64, "fd00:6d73:6c:2::/64"))


class RouterConfig(Frozen):
    """A router of an SR domain that is not the built-in testbed's."""

    name: Name
    """The router's name in this file."""
    sid: str
    """SID of its End function, to be a waypoint of paths."""
    links: tuple[Name, ...] = ()
    """Routers that it has a link to, so that ways through both are found."""
    rate_mbit: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] = 10_000
    """What each of these links carries."""

    @field_validator("sid")
    @classmethod
    def _is_sid(cls, value: str) -> str:
        return str(_address(value, "fd00:6d73:6c:f01:1::"))


class SrConfig(Frozen):
    """The SR domain: addresses of the fabric `sfc`. All but the block follows from the hosts' order."""

    block: str = "fd00:6d73:6c::/48"
    """The /48 from which locators, SIDs and service addresses are taken. Packets with an SRH that come from
    anywhere else are dropped."""
    service: str | None = None
    """Address of the service. Default: derived from `block`."""
    port: Annotated[int, Field(strict=True, ge=1, le=65_535)] = 7433
    """TCP port of the service."""
    max_segments: Annotated[int, Field(strict=True, ge=2, le=16)] = 12
    """Longest segment list that a path of the job may ever have; segments leave room for it."""
    routers: tuple[RouterConfig, ...] = ()
    """Existing cluster only: routers that may be waypoints. The built-in testbed has r1, r2, ..., one a plane."""
    via: Name | tuple[Name | None, ...] | None = None
    """Router that the path passes: one for all hops, or a list with one (or null) for each hop. Default: none,
    the hosts' routes decide."""

    @field_validator("block")
    @classmethod
    def _is_block(cls, value: str) -> str:
        return str(_network(value, 48, "fd00:6d73:6c::/48"))

    @field_validator("service")
    @classmethod
    def _is_service(cls, value: str | None) -> str | None:
        return value if value is None else str(_address(value, "fd00:6d73:6c:ffff:1::100"))


class TestbedConfig(Frozen):
    """The built-in SR domain: hosts as network namespaces of this machine, joined by planes of routers."""

    __test__: ClassVar[bool] = False  # its name does not make it a test

    planes: Annotated[int, Field(strict=True, ge=1, le=16)] = 2
    """Planes, each a router with a link to every host; they share no link."""
    rate_mbit: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = 10_000
    """Rate of each link in Mbit/s, each way; null for no limit."""
    mtu: Annotated[int, Field(strict=True, ge=1500, le=65_535)] = 9000
    """MTU of the links."""


class ClusterConfig(Frozen):
    """The Ray cluster that the hosts are nodes of."""

    name: Name = "local"
    """Name of the built-in local cluster: `msl up`, `status` and `down` find it by this name."""
    address: str | None = None
    """`HOST:PORT` of an existing Ray cluster to join. Default: the built-in local cluster, one raylet a host."""
    network: Literal["private", "host"] = "private"
    """Built-in cluster only. `private`: a network namespace of its own, so that nothing of it can be reached
    from outside. `host`: this machine's own network; Ray then listens on all its interfaces."""
    object_store_mb: Annotated[int, Field(strict=True, ge=75, le=1_000_000)] = 80
    """Built-in cluster only: size of each raylet's object store in MB."""
    runtime_env: dict[str, Any] = Field(default={})
    """Existing cluster only: Ray's runtime environment for the actors (working_dir, env_vars, ...)."""

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, value: str | None) -> str | None:
        if value is not None and not _HOST_PORT.fullmatch(value):
            raise ValueError("must be HOST:PORT of the Ray cluster's head, e.g. 10.0.0.1:6379")
        return value


class ChainConfig(Frozen):
    """Which hosts the chain passes."""

    source: Name | None = None
    """Host of the source: it owns the data and opens the connection. Default: the first host."""
    nsfs: tuple[Name, ...] | None = None
    """Hosts of the NSFs in travel order; a host may stand here more than once. Default: the hosts between."""
    sink: Name | None = None
    """Host of the sink: last stage and loss. Default: the last host."""
    stage_at_source: Annotated[bool, Field(strict=True)] = True
    """Whether stage 0 lives at the source. If not, the source sends the raw inputs."""


class ScheduleConfig(Factory):
    """A learning-rate schedule of torch. `$total_steps`, `$steps_per_epoch` and `$epochs` may stand as values."""

    every: Literal["step", "epoch"] = "epoch"
    """When the schedule advances."""


class TrainConfig(Frozen):
    """The training job."""

    epochs: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5
    """Passes over the training set."""
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 64
    """Samples per optimizer step; the last batch of an epoch may be smaller."""
    micro_batch: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 16
    """Samples per micro-batch; gradients accumulate over the micro-batches of a step."""
    in_flight: Annotated[int, Field(strict=True, ge=1, le=4096)] | None = None
    """Micro-batches under way in the chain at once. Default: the number of stages."""
    eval_batch: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """Samples per micro-batch of an evaluation. Default: `batch_size`."""
    optimizer: Factory = Factory(factory="torch.optim:SGD", args={"lr": 0.01, "momentum": 0.9})
    """The optimizer; each stage has its own, over its own parameters."""
    schedule: ScheduleConfig | None = None
    """The learning-rate schedule, if any."""
    loss: Factory = Factory(factory="torch.nn:CrossEntropyLoss")
    """The loss module, called with (outputs, targets); it must average over the samples."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TrainConfig:
        if self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch: {self.micro_batch}: is larger than batch_size ({self.batch_size}); make it at most that"
            )
        return self


class CheckpointConfig(Frozen):
    """When checkpoints are written, and how many stay."""

    every: Annotated[int, Field(strict=True, ge=1)] = 1
    """Write one after every this many epochs (and after the last)."""
    keep: Annotated[int, Field(strict=True, ge=1)] = 2
    """Keep this many of the newest."""


class TimeoutConfig(Frozen):
    """Deadlines. None of them is a measure of speed: each ends a wait that would last for ever."""

    start_s: Seconds = 120.0
    """Start of the cluster, of the actors, and building of the stages."""
    connect_s: Seconds = 20.0
    """Opening the chain, from the first connection to the sink's welcome."""
    silence_s: Seconds = 20.0
    """Longest silence on a hop; a live peer with nothing to say sends pings more often than this."""
    step_s: Seconds = 600.0
    """Longest wait of the source for the answer to a micro-batch."""
    stop_s: Seconds = 10.0
    """Orderly end of the chain and of the actors; after it they are killed."""


class Config(Frozen):
    """One job: a model, its data, where it is cut, which hosts it runs on, and how it is trained."""

    name: Name = "msl"
    """Name of the job; runs are kept in `runs/NAME-TIME`."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    """Seed of the initial weights, of the order of the samples, and of dropout."""
    model: ModelConfig
    """The unsplit model."""
    data: DataConfig
    """The data set."""
    split: SplitConfig = SplitConfig()
    """Where the model is cut. Default: as many balanced stages as the chain has places for."""
    hosts: tuple[HostConfig, ...] = ()
    """The hosts. Default: one per stage, named n0, n1, ..."""
    chain: ChainConfig = ChainConfig()
    """Which hosts the chain passes."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""
    fabric: Literal["auto", "sfc", "direct"] = "auto"
    """How smashed data gets from hop to hop. `direct` is plain TCP to the next hop. `sfc` steers it with SRv6
    segment lists through transparent proxies; it needs root. `auto` takes `sfc` where it can, and says which."""
    sr: SrConfig = SrConfig()
    """Fabric `sfc`: addresses and path."""
    steering: SteeringConfig = SteeringConfig()
    """Fabric `sfc`: how the path changes while the chain runs."""
    testbed: TestbedConfig = TestbedConfig()
    """Fabric `sfc` on the built-in cluster: the network between the hosts."""
    max_frame_mb: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 512
    """Largest frame that a hop accepts, in MiB; a larger one is refused before memory is taken for it."""
    train: TrainConfig = TrainConfig()
    """The training job."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """Deadlines."""
    serve: ServeConfig = ServeConfig()
    """The trained model as a service."""

    @field_validator("hosts", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        """Let a host be written as its bare name."""
        if isinstance(value, (list, tuple)):
            return tuple({"name": host} if isinstance(host, str) else host for host in value)
        return value

    @model_validator(mode="after")
    def _hosts_exist(self) -> Config:
        names = [host.name for host in self.hosts]
        if (index := _repeated(names)) is not None:
            raise ValueError(f"hosts[{index}]: {names[index]!r}: another host has this name")
        used = {
            "chain.source": self.chain.source,
            "chain.sink": self.chain.sink,
            **{f"chain.nsfs[{i}]": name for i, name in enumerate(self.chain.nsfs or ())},
            **{f"serve.hosts[{i}]": name for i, name in enumerate(self.serve.hosts or ())},
        }
        for path, name in used.items():
            if name is not None and names and name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
                raise ValueError(f"{path}: {name!r}: no such host in hosts; {hint}")
        if self.cluster.address is not None and not names:
            raise ValueError("hosts: is missing; name the hosts of the existing cluster at cluster.address")
        return self
