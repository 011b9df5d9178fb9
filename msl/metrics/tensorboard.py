"""A run in TensorBoard: learning curves, times per stage, traffic per hop, the plan, and hparams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from msl.net.sfc.report import HostReport
from msl.pipeline.counters import StepRecord


class TensorBoard:
    """Writes the events of one run."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=5)

    def plan(self, text: str) -> None:
        """The plan as text."""
        self.text("plan", text, 0)

    def text(self, name: str, text: str, step: int) -> None:
        """Text of fixed width."""
        self._writer.add_text(name, f"```\n{text}\n```", step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """One value."""
        self._writer.add_scalar(name, value, step)

    def step(self, stage: str, record: StepRecord) -> None:
        """One step of one stage; the source's also carries loss, accuracy and speed."""
        add = self._writer.add_scalar
        step = record.step
        add(f"stage_forward_ms/{stage}", record.forward_ms, step)
        add(f"stage_backward_ms/{stage}", record.backward_ms, step)
        add(f"stage_receive_wait_ms/{stage}", record.wait_ms, step)
        add(f"stage_send_ms/{stage}", record.send_ms, step)
        add(f"stage_refused_connections/{stage}", record.refused, step)
        for hop, (bytes_in, frames_in, bytes_out, frames_out) in record.hops.items():
            name = f"{stage}_{hop}"
            add(f"traffic_bytes_in/{name}", bytes_in, step)
            add(f"traffic_bytes_out/{name}", bytes_out, step)
            add(f"traffic_frames_in/{name}", frames_in, step)
            add(f"traffic_frames_out/{name}", frames_out, step)
        if record.loss is not None:
            add("loss/train", record.loss, step)
            if record.accuracy is not None:
                add("accuracy/train", record.accuracy, step)
            add("speed/samples_per_second", record.samples / (record.wall_ms / 1e3), step)
            add("speed/step_ms", record.wall_ms, step)
        if record.learning_rate is not None and stage in ("source", "sink"):
            add("learning_rate/learning_rate", record.learning_rate, step)

    def epoch(self, step: int, test_loss: float, test_accuracy: float | None) -> None:
        """The evaluation at the end of an epoch."""
        self._writer.add_scalar("loss/test", test_loss, step)
        if test_accuracy is not None:
            self._writer.add_scalar("accuracy/test", test_accuracy, step)

    def host(self, step: int, report: HostReport) -> None:
        """A host of the SR domain: dropped packets by reason, flows, and its links' traffic."""
        add = self._writer.add_scalar
        add(f"sfc_flows/{report.host}", report.num_flows, step)
        add(f"sfc_drops/{report.host}", sum(report.drops.values()), step)
        for reason, count in report.drops.items():
            if count:
                add(f"sfc_drops_{reason}/{report.host}", count, step)
        for link in report.links:
            add(f"sfc_link_bytes_out/{report.host}_{link.interface}", link.bytes_out, step)
            add(f"sfc_link_drops/{report.host}_{link.interface}", link.drops, step)

    def hparams(self, settings: Mapping[str, str | int | float | bool], results: Mapping[str, float]) -> None:
        """What the run was made with, and how it ended."""
        file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(dict(settings), dict(results)):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        for name, value in results.items():
            self._writer.add_scalar(name, value)

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()
