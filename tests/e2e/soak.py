"""A service under mixed load for as long as one likes: `scripts/soak`.

Trains a small model, serves it, and lets client processes ask it as a user's would: with batches of all sizes,
pipelined, connecting anew, reading slowly; and beside them strangers that send garbage, stop in the middle, or drop
their connections. Fails if an answer is wrong or missing, if memory grows, or if anything is left of the connections.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msl.actors import services
from msl.actors.services import ServiceRecord
from tests.e2e.command import finish, msl, start, wait_until, write_config

if TYPE_CHECKING:
    import numpy as np

EVERY_S = 10.0
GROWTH, ALLOWANCE_BYTES = 1.05, 20e6
"""How much larger the memory of an NSF may be in the last quarter than in the second."""
SETTLE_S = 60.0
"""Time for the connections to be forgotten; a proxy forgets an idle one after 10 s."""
TIMEOUT_S = 30.0
SHAPE = (1, 16, 16)
Flows = Callable[[], int | None]
"""Counts the flow entries; None if the fabric has none."""


class SoakError(Exception):
    """What went wrong, in one line."""


@dataclass
class Tally:
    """What clients have seen."""

    answered: int = 0
    missing: int = 0
    wrong: int = 0
    fault: str = ""


# -- a client, in a process of its own


def work(kind: str, seed: int, record: ServiceRecord, known: Path, until: float, pipe: Pipe) -> None:
    """Ask, or disturb, until the time has come; tells its tally and its latencies now and then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    services.enter_network(record)
    chance = random.Random(seed)
    tally = Tally()
    latencies: list[float] = []
    told = time.monotonic()
    act = DISTURBERS.get(kind)
    if act is None:
        import numpy as np  # after the network is entered

        with np.load(known) as saved:
            inputs, outputs = saved["inputs"], saved["outputs"]
    while time.time() < until:
        try:
            if act is not None:
                act((record.address, record.port), record.name, chance)
            else:
                ask(kind, record, inputs, outputs, chance, tally, latencies)
        except Exception as error:
            tally.fault = tally.fault or f"{kind}: {type(error).__name__}: {error}"
            tally.missing += act is None
            time.sleep(0.2)
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            pipe.send((tally, latencies))
            latencies.clear()
    pipe.send((tally, latencies))


def ask(
    kind: str,
    record: ServiceRecord,
    inputs: np.ndarray[Any, Any],
    outputs: np.ndarray[Any, Any],
    chance: random.Random,
    tally: Tally,
    latencies: list[float],
) -> None:
    """One connection: requests of random samples, compared with what the unsplit model makes of them."""
    import numpy as np

    from msl.client import Client

    deep = {"single": 1, "pipelined": 8, "reconnecting": 2, "slow": 8}[kind]
    with Client((record.address, record.port), record.name, timeout_s=TIMEOUT_S) as client:
        for _ in range(3 if kind == "reconnecting" else 30):
            chosen = [chance.choices(range(len(inputs)), k=chance.choice((1, 1, 2, 4, 8))) for _ in range(deep)]
            begin = time.perf_counter()
            pending = [client.submit(inputs[rows]) for rows in chosen]
            if kind == "slow":
                time.sleep(chance.random())
            for rows, answer in zip(chosen, pending, strict=True):
                found = answer.result()
                tally.answered += 1
                tally.wrong += not np.allclose(found, outputs[rows], rtol=1e-3, atol=1e-3)
            if kind == "single":
                latencies.append(time.perf_counter() - begin)


def garbage(address: tuple[str, int], _name: str, chance: random.Random) -> None:
    """Sends anything."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=TIMEOUT_S) as sock:
        sock.sendall(chance.randbytes(chance.randrange(1, 5000)))
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(1.0)
        while sock.recv(65536):
            pass
    time.sleep(0.02)


def dropped(address: tuple[str, int], name: str, chance: random.Random) -> None:
    """Connects, perhaps says HELLO, perhaps begins a request, and is gone."""
    from msl.net.frame import Header, Kind, encode_document

    hello = b"".join(encode_document(Header(Kind.HELLO), {"service": name}))
    request = Header(Kind.FORWARD, num_tensors=1, body_size=4096).pack()
    said = (hello + request)[: chance.choice((0, 10, len(hello), len(hello) + 10, len(hello) + 32))]
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=TIMEOUT_S) as sock:
        sock.sendall(said)
        time.sleep(chance.choice((0, 0.01, 0.1)))
        if chance.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.02)


DISTURBERS: dict[str, Callable[[tuple[str, int], str, random.Random], None]] = {"garbage": garbage, "dropped": dropped}
KINDS = ("single", "pipelined", "reconnecting", "slow", *DISTURBERS)


# -- the service


@contextlib.contextmanager
def cluster(folder: Path, name: str, fabric: str) -> Iterator[Path]:
    """The configuration of the job; its cluster runs, so that `msl status` can tell of it."""
    sizes = {"num_train": 44, "num_test": 12, "shape": list(SHAPE), "num_classes": 4}
    settings = {"cluster": {"name": name}, "data": {"args": sizes}, "train": {"epochs": 1}}
    config = write_config(folder, name=name, fabric=fabric, **settings)
    try:
        run("up", "--config", config)
        yield config
    finally:
        msl("down", "--config", config)


def run(*arguments: str | Path) -> str:
    """What an `msl` command prints."""
    done = msl(*arguments)
    if done.code:
        raise SoakError(f"msl {arguments[0]} failed: {done.last_line}")
    return done.output


def remember(trained: Path, path: Path) -> None:
    """Write down what the unsplit model makes of the test set; in a process of its own, as it needs torch."""
    import numpy as np
    import torch

    from msl.actors.job import prepare
    from msl.actors.resume import newest_checkpoint
    from msl.cli.train import config_of_run
    from msl.pipeline.checkpoint import load

    model = prepare(config_of_run(None, (), trained, "")).model
    state, _ = load(newest_checkpoint(trained), model)
    model.load_state_dict(dict(state.weights))
    inputs = torch.randn(40, *SHAPE)
    with torch.inference_mode():
        outputs = model.eval()(inputs)
    np.savez(path, inputs=inputs.numpy(), outputs=outputs.numpy())


@contextlib.contextmanager
def served(trained: Path, name: str) -> Iterator[ServiceRecord]:
    """`msl serve`, ready; ended with SIGINT."""
    process = start("serve", "--checkpoint", trained)
    try:

        def ready() -> ServiceRecord | None:
            if process.poll() is not None:
                raise SoakError(f"the service did not start: {finish(process).last_line}")
            return services.find(name)

        yield wait_until(ready, 120.0, "the service is ready")
        if process.poll() is not None:
            raise SoakError(f"the service has ended: {finish(process).last_line}")
    finally:
        process.send_signal(signal.SIGINT)
        finish(process)


def num_flows(config: Path) -> int:
    """Flow entries of all proxies, as `msl status` tells."""
    shown = run("status", "--config", config)
    if (at := shown.find("\nflows")) < 0:
        raise SoakError("msl status tells of no flows")
    section = shown[at:]
    listed = len(re.findall(r"\]:\d+ .*\]:\d+ ", section.split("packets dropped")[0]))
    more = re.search(r"and (\d+) more flows", section)
    return listed + (int(more[1]) if more else 0)


# -- the load, and what is seen of it


class Load:
    """Client processes of all kinds."""

    def __init__(self, record: ServiceRecord, known: Path, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.latencies: list[float] = []
        self._tallies: dict[str, Tally] = {kind: Tally() for kind in KINDS}
        self._clients = []
        for seed, kind in enumerate(KINDS):
            near, far = context.Pipe(duplex=False)
            client = context.Process(target=work, args=(kind, seed, record, known, time.time() + seconds, far))
            client.start()
            far.close()
            self._clients.append((kind, client, near))

    @property
    def running(self) -> bool:
        """Whether any client still runs."""
        return any(client.is_alive() for _, client, _ in self._clients)

    def look(self) -> Tally:
        """All that the clients have told so far, in sum."""
        for kind, _, pipe in self._clients:
            with contextlib.suppress(EOFError):
                while pipe.poll():
                    self._tallies[kind], latencies = pipe.recv()
                    self.latencies += latencies
        tallies = self._tallies.values()
        faults = (tally.fault for tally in tallies if tally.fault)
        return Tally(
            sum(tally.answered for tally in tallies),
            sum(tally.missing for tally in tallies),
            sum(tally.wrong for tally in tallies),
            next(faults, ""),
        )

    def check(self) -> None:
        """Fail if a client has failed, or one that asks has had no answer."""
        for kind, client, _ in self._clients:
            if client.exitcode:
                raise SoakError(f"a client ({kind}) ended with code {client.exitcode}")
            if kind not in DISTURBERS and not self._tallies[kind].answered:
                raise SoakError(f"a client ({kind}) had no answer at all: {self._tallies[kind].fault or 'no reason'}")

    def stop(self) -> None:
        """End all that still run."""
        for _, client, pipe in self._clients:
            client.kill()
            client.join()
            pipe.close()


def soak(minutes: float, fabric: str) -> None:
    """Run it; prints a line every ten seconds.

    Raises:
        SoakError: what is wrong.
    """
    name = f"soak{os.getpid()}"
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="msl-soak-") as folder:
        trained, known = Path(folder) / "run", Path(folder) / "known.npz"
        with cluster(Path(folder), name, fabric) as config:
            run("train", "--config", config, "--out", trained)
            remembering = context.Process(target=remember, args=(trained, known))
            remembering.start()
            remembering.join()
            with served(trained, name) as record:
                flows = partial(num_flows, config) if record.fabric == "sfc" else lambda: None
                before = flows()
                memory = loaded(Load(record, known, minutes * 60), record, flows)
                settled(record, flows, before or 0)
    grown(memory)


def loaded(load: Load, record: ServiceRecord, flows: Flows) -> dict[str, list[float]]:
    """Watch the load to its end; the resident memory of each NSF, second by second."""
    memory: dict[str, list[float]] = {}
    begin = shown = time.monotonic()
    answered = 0
    try:
        while load.running:
            time.sleep(1.0)
            told = services.figures(record.name)
            for hop, figures in told.get("hops", {}).items():
                memory.setdefault(hop, []).append(figures["rss_bytes"])
            tally = load.look()
            if tally.missing or tally.wrong:
                raise SoakError(f"{tally.missing} answers are missing and {tally.wrong} are wrong ({tally.fault})")
            if not record.alive:
                raise SoakError("the service has ended")
            if (now := time.monotonic()) - shown >= EVERY_S:
                rate = (tally.answered - answered) / (now - shown)
                answered, shown = tally.answered, now
                show(now - begin, rate, load.latencies, told.get("hops", {}), flows())
                load.latencies.clear()
        load.look()
        load.check()
    finally:
        load.stop()
    return memory


def show(seconds: float, rate: float, latencies: list[float], hops: dict[str, Any], flows: int | None) -> None:
    """One line of figures."""
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    times = " ".join(f"p{percent} {cuts[percent - 1] * 1e3:.1f}" for percent in (50, 95, 99))
    memory = " ".join(f"{hop} {figures['rss_bytes'] / 1e6:.0f}" for hop, figures in hops.items())
    first: dict[str, Any] = next(iter(hops.values()), {"connections": 0, "refused": {}})
    refused = sum(first["refused"].values())
    steered = f", {flows} flow entries" if flows is not None else ""
    print(
        f"{seconds:6.0f} s: {rate:.0f} requests/s, {times} ms, RSS {memory} MB, {first['connections']} connections,"
        f" {refused} refused{steered}",
        flush=True,
    )


def settled(record: ServiceRecord, flows: Flows, before: int) -> None:
    """Wait until the connections of the load are forgotten everywhere."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        hops = services.figures(record.name).get("hops", {})
        # The service's own probe may be one of them.
        open_ones = max((figures["connections"] for figures in hops.values()), default=0)
        entries = flows() or 0
        if open_ones <= 1 and entries <= before:
            return
        if time.monotonic() > deadline:
            raise SoakError(f"{open_ones} connections and {entries} flow entries are left; there were {before}")
        time.sleep(1.0)


def grown(memory: dict[str, list[float]]) -> None:
    """Compare the memory of the last quarter with that of the second."""
    for hop, sizes in memory.items():
        quarter = max(1, len(sizes) // 4)
        early = statistics.median(sizes[quarter : 2 * quarter] or sizes)
        late = statistics.median(sizes[-quarter:])
        print(f"RSS of {hop}: {early / 1e6:.0f} MB in the second quarter, {late / 1e6:.0f} MB in the last", flush=True)
        if late > early * GROWTH + ALLOWANCE_BYTES:
            raise SoakError(f"the memory of {hop} has grown from {early / 1e6:.0f} to {late / 1e6:.0f} MB")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0, help="of load (default: 30)")
    parser.add_argument("--fabric", default="auto", choices=("auto", "sfc", "direct"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        soak(options.minutes, options.fabric)
    except (SoakError, AssertionError) as error:
        print(f"soak: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("soak: all answers right, nothing left, nothing grown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
