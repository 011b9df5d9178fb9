"""A stage's counters as Ray's own metrics, readable at the Prometheus port of its host's raylet."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from msl.pipeline.counters import StepRecord

_STEP_MS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0]


class StageMetrics:
    """Metrics of one member, tagged with job, stage and host; each hop also with its direction."""

    def __init__(self, job: str, stage: str, host: str) -> None:
        tags = {"job": job, "stage": stage, "host": host}
        keys = tuple(tags)
        self._steps = Counter("msl_steps", "Optimizer steps done.", keys)
        self._times = Histogram("msl_step_activity_ms", "Time of a step by activity.", _STEP_MS, (*keys, "activity"))
        self._bytes = Counter("msl_hop_bytes", "Bytes over a hop.", (*keys, "hop", "direction"))
        self._frames = Counter("msl_hop_frames", "Frames over a hop.", (*keys, "hop", "direction"))
        self._refused = Gauge("msl_refused_connections", "Connections refused.", keys)
        self._loss = Gauge("msl_loss", "Loss of the last step.", keys)
        for metric in (self._steps, self._times, self._bytes, self._frames, self._refused, self._loss):
            metric.set_default_tags(tags)
        self._seen: dict[str, tuple[int, int, int, int]] = {}

    def observe(self, record: StepRecord) -> None:
        """Add a step."""
        self._steps.inc(1)
        for activity in ("forward", "backward", "wait", "send"):
            self._times.observe(getattr(record, f"{activity}_ms"), tags={"activity": activity})
        self._refused.set(record.refused)
        if record.loss is not None:
            self._loss.set(record.loss)
        for hop, totals in record.hops.items():
            before = self._seen.get(hop, (0, 0, 0, 0))
            self._seen[hop] = totals
            bytes_in, frames_in, bytes_out, frames_out = (now - then for now, then in zip(totals, before, strict=True))
            for metric, direction, amount in (
                (self._bytes, "in", bytes_in),
                (self._bytes, "out", bytes_out),
                (self._frames, "in", frames_in),
                (self._frames, "out", frames_out),
            ):
                if amount:
                    metric.inc(amount, tags={"hop": hop, "direction": direction})
