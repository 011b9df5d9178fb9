"""What will be done: who stands where in the chain, computed from a configuration without side effects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from msl.config import Config
from msl.errors import ConfigError

if TYPE_CHECKING:
    from msl.plan.steering import ChainPlan

Role = Literal["source", "nsf", "sink"]


@dataclass(frozen=True)
class Place:
    """A member of the chain: the source, an NSF, or the sink."""

    hop: int
    """Place in the chain; the source is 0."""
    name: str
    """`source`, `nsf1`, `nsf2`, ..., `sink`."""
    role: Role
    host: str
    stage: int | None
    """Index of the stage that it computes; None for a source that sends the raw inputs."""

    @property
    def title(self) -> str:
        """How messages call it, e.g. `nsf1 on host n1`."""
        return f"{self.name} on host {self.host}"


@dataclass(frozen=True)
class InputSpec:
    """One input of the model, as every member must know it to cut the model; only the source has the data."""

    shape: tuple[int, ...]
    """Without the batch dimension."""
    dtype: str
    """As torch names it, e.g. `float32`."""


@dataclass(frozen=True)
class StageProfile:
    """What one stage weighs, measured on the unsplit model."""

    parameters: int
    forward_ms: float
    """Forward pass of one micro-batch."""
    backward_ms: float
    """Backward pass of one micro-batch."""


@dataclass(frozen=True)
class Profile:
    """A model's stages and cuts as measured."""

    cut: tuple[str, ...]
    """Named modules before which the model is cut."""
    stages: tuple[StageProfile, ...]
    bytes_across: tuple[int, ...]
    """Per cut: bytes of smashed data per sample, one way."""
    inputs: tuple[InputSpec, ...]
    """The model's inputs."""
    input_bytes: int
    """Bytes per sample of the model's inputs."""


@dataclass(frozen=True)
class Member:
    """A place in the chain with all that its host must know."""

    place: Place
    threads: int
    """Threads of torch on this member; 1 for a source without a stage."""
    parameters: int
    forward_ms: float
    backward_ms: float
    bytes_onward: int
    """Bytes per sample that it sends to the next hop; 0 at the sink."""


@dataclass(frozen=True)
class Plan:
    """A job, ready to be applied."""

    name: str
    fabric: str
    hosts: tuple[str, ...]
    cut: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    """The model's inputs, for members that have no data."""
    train_samples: int
    """Size of the training set, from which schedules reckon their steps."""
    members: tuple[Member, ...]
    in_flight: int
    """Micro-batches under way in the chain at once."""
    schema: str
    """Digest of what all members must agree on: model, cut, and the order of the members."""
    steered: ChainPlan | None = None
    """With the fabric `sfc`: the chain's SIDs, service address and path."""

    @property
    def source(self) -> Member:
        """The first member."""
        return self.members[0]

    @property
    def sink(self) -> Member:
        """The last member."""
        return self.members[-1]

    def document(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain


def lay_out(config: Config) -> tuple[tuple[str, ...], tuple[Place, ...]]:
    """Hosts, and who stands where; needs no model.

    Raises:
        ConfigError: the numbers of stages, hosts and NSFs do not fit each other.
    """
    chain = config.chain
    extra = 0 if chain.stage_at_source else 1
    stages = _stages_asked(config)
    names = tuple(host.name for host in config.hosts)
    if stages is None and chain.nsfs is not None:
        stages = len(chain.nsfs) + 2 - extra
    if stages is None and names:
        stages = len(names) - extra
    if stages is None:
        raise ConfigError(
            "split: say where to cut: 'cut' with names of modules, 'stages' with a number, or 'hosts' with one"
            " host per stage"
        )
    size = stages + extra
    if size < 2:
        raise ConfigError(
            f"split: {_count(stages, 'stage')} cannot make a chain, which has a source and a sink; "
            + (
                "make two stages or more, or set chain.stage_at_source to false"
                if chain.stage_at_source
                else "make one stage or more"
            )
        )
    if chain.nsfs is not None and len(chain.nsfs) != size - 2:
        raise ConfigError(
            f"chain.nsfs: {_count(len(chain.nsfs), 'host')} for {_count(size - 2, 'NSF')}: {_count(stages, 'stage')},"
            " one of them at the sink" + ("" if extra else ", one at the source")
        )
    if not names:
        given = (chain.source, *(chain.nsfs or ()), chain.sink)
        names = tuple(dict.fromkeys(host for host in given if host)) if any(given) else _numbered(size)
        if any(given) and (chain.source is None or chain.sink is None or (size > 2 and chain.nsfs is None)):
            raise ConfigError("chain: without 'hosts', name source, nsfs and sink, or none of them")
    order = _order(config, names, size)
    roles: list[tuple[str, Role]] = [("source", "source")]
    roles += [(f"nsf{i}", "nsf") for i in range(1, size - 1)]
    roles += [("sink", "sink")]
    return names, tuple(
        Place(hop, name, role, host, hop - extra if hop >= extra else None)
        for hop, ((name, role), host) in enumerate(zip(roles, order, strict=True))
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _stages_asked(config: Config) -> int | None:
    if config.split.cut is not None:
        return len(config.split.cut) + 1
    return config.split.stages


def _numbered(size: int) -> tuple[str, ...]:
    return tuple(f"n{i}" for i in range(size))


def _order(config: Config, names: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The hosts of the members in travel order."""
    chain = config.chain
    source, sink = chain.source or names[0], chain.sink or names[-1]
    if chain.nsfs is not None:
        return (source, *chain.nsfs, sink)
    between = [name for name in names if name not in (source, sink)]
    if len(between) < size - 2:
        raise ConfigError(
            f"hosts: {_count(len(between), 'host')} between source and sink for {_count(size - 2, 'NSF')}; add hosts,"
            " or name the NSFs' hosts in chain.nsfs (a host may stand there more than once)"
        )
    return (source, *between[: size - 2], sink)


def build(
    config: Config,
    profile: Profile,
    cpus: Mapping[str, int],
    train_samples: int,
    steered: ChainPlan | None = None,
) -> Plan:
    """The plan of a job.

    Args:
        config: what was asked for.
        profile: the measured model, with as many stages as `lay_out` has places for.
        cpus: CPUs of each host that its stages may use.
        train_samples: size of the training set.
        steered: the chain's place in an SR domain, with the fabric `sfc`.
    """
    hosts, places = lay_out(config)
    computing = [place.host for place in places if place.stage is not None]
    members = []
    for place in places:
        stage = profile.stages[place.stage] if place.stage is not None else StageProfile(0, 0.0, 0.0)
        onward = 0
        if place.role != "sink":
            onward = profile.input_bytes if place.stage is None else profile.bytes_across[place.stage]
        share = max(1, cpus[place.host] // computing.count(place.host)) if place.stage is not None else 1
        members.append(Member(place, share, stage.parameters, stage.forward_ms, stage.backward_ms, onward))
    agreed = {
        "model": config.model.model_dump(mode="json"),
        "cut": profile.cut,
        "members": [(place.name, place.stage) for place in places],
    }
    schema = hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()
    in_flight = config.train.in_flight or len(profile.stages)
    return Plan(
        config.name,
        "sfc" if steered is not None else "direct",
        hosts,
        profile.cut,
        profile.inputs,
        train_samples,
        tuple(members),
        in_flight,
        schema,
        steered,
    )
