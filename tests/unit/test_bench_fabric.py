"""`msl bench fabric`: counters, checks and relays, without a testbed."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from msl.bench.fabric.bare import relay
from msl.bench.fabric.benchmark import PARTS
from msl.bench.fabric.chains import ends_of
from msl.bench.fabric.framed import check_answer
from msl.bench.fabric.iperf import Transfer, read
from msl.bench.fabric.load import Load, costs, interface_load, machine_load, tcp_load
from msl.bench.fabric.order import NUMBER, Ledger, Order, Tally, number_of
from msl.bench.fabric.pages import quantities
from msl.bench.fabric.parts import check_losses
from msl.bench.options import parse_parts
from msl.bench.report import Report
from msl.bench.result import Sample
from msl.bench.several import write_several
from msl.bench.window import for_a_while
from msl.errors import ConfigError, NetworkError, ProtocolError, StageError
from msl.plan import Place

MIB = 2**20
STAT = "cpu  1000 50 300 9000 20 7 93 400 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nctxt 5\n"
DEVICES = """Inter-|   Receive                       |  Transmit
 face |bytes    packets errs drop fifo|bytes    packets errs drop
    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0
  fab1: 500 5 0 2 0 0 0 0 7000 70 0 1 0 0 0 0
fab2:300 3 0 0 0 0 0 0 400 4 0 0 0 0 0 0
  mgmt: 900 9 0 9 0 0 0 0 900 9 0 9 0 0 0 0
"""
PROTOCOLS = """Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm InSegs OutSegs RetransSegs InErrs
Tcp: 1 11 22 3 0
"""
REPORT = {"sum_sent": {"bytes": 5000, "retransmits": 2}, "sum_received": {"bytes": 4000, "seconds": 2.0}}


def message(number: int, size: int = 64) -> bytearray:
    """Random bytes with a number at the end."""
    made = bytearray(os.urandom(size))
    NUMBER.pack_into(made, size - NUMBER.size, number)
    return made


def test_cpu_times_are_those_of_the_whole_machine() -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    load = machine_load(STAT)
    assert (load.user_s, load.system_s, load.softirq_s) == pytest.approx((1050 * tick_s, 300 * tick_s, 100 * tick_s))
    assert load.machine_s == pytest.approx(1450 * tick_s)


def test_only_the_named_interfaces_count() -> None:
    assert interface_load(DEVICES, ("fab1", "fab2")) == Load(packets=74, num_bytes=7400, drops=3)


def test_tcp_segments_are_found_by_their_name() -> None:
    assert tcp_load(PROTOCOLS) == Load(segments=22, retransmitted=3)


def test_costs_are_per_byte_and_per_mib_of_payload() -> None:
    before = Load(1.0, 2.0, 3.0, 4.0, 100, 1000, 0, 50, 0)
    after = Load(1.5, 3.0, 3.5, 5.0, 500, 1000 + 12 * MIB, 0, 450, 7)
    found = costs(after - before, 2 * MIB)
    assert found["cpu_per_byte"] == pytest.approx(2.0e9 / (2 * MIB))
    assert found["cpu_per_byte"] == pytest.approx(
        found["user_per_byte"] + found["system_per_byte"] + found["softirq_per_byte"]
    )
    assert found["member_cpu_per_byte"] == pytest.approx(1.0e9 / (2 * MIB))
    assert (found["packets_per_mib"], found["segments_per_mib"], found["sent_per_byte"]) == (200, 200, 6)


def test_a_ledger_tells_lost_and_changed_messages() -> None:
    sent, received = Ledger(), Ledger()
    sent.whole = received.whole = True
    messages = [message(number) for number in range(3)]
    for one in messages:
        sent.note(memoryview(one))
        received.note(memoryview(one))
    assert sent.tally == received.tally
    assert sent.tally[:2] == (3, 192)
    assert not sent.tally.wrong
    received.note(memoryview(message(4)))
    assert received.tally.wrong == 1
    changed = message(3)
    received = Ledger()
    received.tally = sent.tally
    received.whole = True
    sent.note(memoryview(changed))
    changed[0] ^= 1
    received.note(memoryview(changed))
    assert sent.tally._replace(crc=0) == received.tally._replace(crc=0)
    assert sent.tally != received.tally


def test_a_ledger_reads_no_more_than_the_number_unless_asked() -> None:
    ledger = Ledger()
    ledger.note(memoryview(message(0)))
    assert ledger.tally == Tally(1, 64, 0, 0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (message(6), "message 7 was answered with 6"),
        (message(7, 32), "of message 7, 32 of 64 bytes came back"),
        (message(7), "message 7 came back with other bytes"),
    ],
)
def test_a_wrong_answer_is_told(answer: bytearray, text: str) -> None:
    order = Order(64, 1, 0.1, echo=True, whole=True)
    sent = message(7)
    check_answer(memoryview(bytes(sent)), sent, 7, order)
    with pytest.raises(ProtocolError, match=text):
        check_answer(memoryview(answer), sent, 7, order)


def test_a_short_answer_has_the_number_only() -> None:
    check_answer(memoryview(NUMBER.pack(7)), message(7), 7, Order(64, 4, 0.1, echo=False, whole=True))


def test_a_relay_moves_bytes_both_ways_at_once_and_ends_with_the_stream() -> None:
    source, inner = socket.socketpair()
    outer, sink = socket.socketpair()
    payload = os.urandom(3 * MIB)
    got: dict[str, bytes] = {}

    def receive(name: str, sock: socket.socket) -> None:
        got[name] = sock.recv(len(payload), socket.MSG_WAITALL)

    with source, sink:
        threads = [threading.Thread(target=relay_pair, args=(inner, outer))]
        threads += [threading.Thread(target=receive, args=end) for end in (("source", source), ("sink", sink))]
        threads += [threading.Thread(target=sock.sendall, args=(payload,)) for sock in (source, sink)]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join(timeout=10)
        source.shutdown(socket.SHUT_WR)
        threads[0].join(timeout=10)
        assert not threads[0].is_alive()
    assert got == {"source": payload, "sink": payload}


def relay_pair(one: socket.socket, other: socket.socket) -> None:
    """A relay that owns its sockets."""
    with one, other:
        relay(one, other)


def test_a_window_is_never_exceeded_and_every_message_is_answered() -> None:
    waiting = [0, 0, 0]  # now, most, answered

    def send() -> None:
        waiting[0] += 1
        waiting[1] = max(waiting[:2])

    def await_answer() -> None:
        waiting[0] -= 1
        waiting[2] += 1

    passed = for_a_while(0.01, 4, send, await_answer)
    assert passed.messages == waiting[2] == len(passed.trips_s) > 4
    assert waiting[:2] == [0, 4]
    assert passed.seconds >= 0.01
    assert for_a_while(0.0, 1, send, await_answer).messages == 3


def test_iperf_is_believed_if_what_it_sent_arrived() -> None:
    assert read(json.dumps({"end": REPORT}).encode()) == Transfer(4000, 2.0, 2)
    for received in (0, 6000):
        lost = REPORT | {"sum_received": {"bytes": received, "seconds": 2.0}}
        with pytest.raises(NetworkError, match=f"of 5000 bytes, {received} arrived"):
            read(json.dumps({"end": lost}).encode())
    with pytest.raises(NetworkError, match="iperf3: unable to connect"):
        read(b'{"end": {}, "error": "unable to connect"}')
    with pytest.raises(NetworkError, match="iperf3 said"):
        read(b"")


def test_parts_are_measured_in_their_own_order() -> None:
    assert parse_parts("iperf, rtt", PARTS) == ("rtt", "iperf")
    with pytest.raises(ConfigError, match="--only rtt,ping: 'ping' is no part; there are rtt, bulk, step, iperf"):
        parse_parts("rtt,ping", PARTS)


def test_losses_must_have_the_same_bits() -> None:
    check_losses({"sfc": [0.1, 0.2], "direct": [0.1, 0.2]})
    with pytest.raises(StageError, match=r"step 1: .* 0\.30000000000000004 over sfc, 0\.3 over direct"):
        check_losses({"sfc": [0.1, 0.1 + 0.2], "direct": [0.1, 0.3]})


def test_the_chain_without_nsfs_has_the_same_ends() -> None:
    places = (
        Place(0, "source", "source", "a", 0),
        Place(1, "nsf1", "nsf", "b", 1),
        Place(2, "sink", "sink", "c", 2),
    )
    source, sink = ends_of(places)
    assert source == places[0]
    assert (sink.hop, sink.host, sink.role) == (1, "c", "sink")


def test_the_summary_has_the_names_that_are_looked_for() -> None:
    names = {
        ratio.key(case)
        for quantity in quantities([64, 8 * MIB]).values()
        for ratio in quantity.ratios
        for case in quantity.cases
    }
    assert names >= {
        "step_sfc_over_direct",
        "rtt64_sfc_over_direct",
        "rtt64_raw_sfc_over_direct",
        "rtt8mib_sfc_over_direct",
        "bulk_sfc_over_direct",
        "bulk_raw_sfc_over_direct",
        "bulk_both_ways_sfc_over_direct",
        "cpu_per_byte_sfc_over_direct",
        "iperf_srv6_over_plain",
    }


def test_several_reports_share_their_files(tmp_path: Path) -> None:
    reports = []
    for name in ("rtt_us", "cpu_split"):
        quantity = quantities([64])[name]
        samples = [
            Sample(1, 0, case, side, 2.0 + ("direct" in side), {name: 1.0})
            for case in quantity.cases
            for side in quantity.sides
        ]
        reports.append(Report("toy", *quantity[:1], "msl", {}, name, *quantity[1:4], samples, quantity.ratios))
    document = write_several(tmp_path, "A toy", "Together.", reports)
    assert json.loads((tmp_path / "summary.json").read_text()) == document
    assert document["rtt64_sfc_over_direct"] == pytest.approx(2 / 3)
    assert set(document["ratio_spread"]) == {"rtt64_sfc_over_direct", "rtt64_raw_sfc_over_direct"}
    assert document["cpu_split"]["user_per_byte"]["sfc"]["median"] == 2.0
    page = (tmp_path / "results.md").read_text()
    assert page.count("* `raw_sfc`:") == 1  # explained once
    assert page.count("| 2 (2 to 2) |") == 2 * 7
    header, *rows = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "round,place,quantity,case,side,value,rtt_us,cpu_split"
    assert rows[0] == "1,0,rtt_us,64,sfc,2.0,1.0,"
    assert len(rows) == 4 + 6 * 4


def test_a_messages_number_is_its_last_bytes() -> None:
    assert number_of(memoryview(message(123456789012))) == 123456789012
