"""`msl infer`: ask a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msl.cli.console import line, progress, table
from msl.cli.stop import orderly_stop
from msl.cli.train import config_of_run, config_options
from msl.config import Config
from msl.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from msl.pipeline.predictions import Question, Reply

_PATH = click.Path(path_type=Path)
_MOST_ROWS = 20


@click.command()
@click.argument("images", type=_PATH, nargs=-1, metavar="[IMAGE]...")
@config_options(required=False)
@click.option("--dataset", type=click.Choice(["test", "train"]), help="Ask about this part of the job's data set.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many samples of it.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples of a request.")
@click.option("--trace", is_flag=True, help="Show where the time of the last request went, hop by hop.")
@click.option("--picture", type=_PATH, metavar="FILE", help="Write a PNG of the images with their labels.")
@click.option("--service", help="Name of the service.  [default: the config's name, or the one that runs]")
def infer(
    images: tuple[Path, ...],
    config_path: Path | None,
    overrides: tuple[str, ...],
    dataset: Any,
    limit: int | None,
    batch: int,
    trace: bool,
    picture: Path | None,
    service: str | None,
) -> None:
    """Ask a running service what is on images.

    IMAGE files are resized and normalised as the training set was. With --dataset the right answers are known, and
    the accuracy is shown.

    \b
      msl infer --dataset test --batch 32
      msl infer --trace examples/digits/seven.png
      msl infer --dataset test --limit 24 --picture predictions.png
    """
    if bool(images) == bool(dataset):
        raise click.UsageError("Name IMAGE files, or --dataset test.")
    from msl.actors import services

    name = service
    if name is None and config_path is not None:
        name = config_of_run(config_path, overrides, None, "").name
    running = services.running()
    found = [record for record in running if name is None or record.name == name]
    if len(found) != 1:
        which = f"no service {name!r} is" if name else ("no service is" if not running else "several services are")
        names = ", ".join(record.name for record in running)
        hint = f"choose one with --service: {names}" if running else "start one with: msl serve --checkpoint RUN"
        raise ClusterError(f"{which} running; {hint}")
    record = found[0]
    config = config_of_run(config_path, overrides, Path(record.checkpoint), "--config")
    with orderly_stop(line):
        services.enter_network(record)
        _ask(config, record, images, dataset, limit, batch, trace, picture)


def _ask(
    config: Config,
    record: Any,
    images: tuple[Path, ...],
    dataset: Any,
    limit: int | None,
    batch: int,
    trace: bool,
    picture: Path | None,
) -> None:
    from msl.client import Client  # and torch: after the network is entered
    from msl.pipeline.predictions import ask, from_dataset, from_images

    with Client((record.address, record.port), record.name, timeout_s=config.timeouts.step_s) as client:
        if batch > client.max_samples:
            raise ConfigError(f"--batch {batch}: the service takes at most {client.max_samples} samples a request")
        question = (
            from_dataset(config, dataset, limit)
            if dataset
            else from_images(config, [spec.shape for spec in client.inputs], images)
        )
        with progress("samples", len(question.names)) as advance:
            reply = ask(client, question, batch, trace, advance)
    _show(question, reply, batch)
    if trace and reply.traces:
        from msl.net.waterfall import waterfall

        for text in waterfall(reply.traces[-1], 72):
            line(text)
    if picture is not None:
        _draw(picture, question, reply)


def _show(question: Question, reply: Reply, batch: int) -> None:
    from msl.metrics.summary import percentile

    best = reply.probabilities.topk(min(2, reply.probabilities.shape[1]), 1)
    rows = []
    for index, name in enumerate(question.names[:_MOST_ROWS]):
        guesses = [
            f"{question.class_name(int(label))} ({float(probability):.1%})"
            for label, probability in zip(best.indices[index], best.values[index], strict=True)
        ]
        known = question.class_name(int(question.targets[index])) if question.targets is not None else None
        rows.append((name, guesses[0], guesses[1] if len(guesses) > 1 else "-", *([known] if known else [])))
    columns = ("sample", "prediction", "second best", *(["label"] if question.targets is not None else []))
    table("predictions", columns, rows)
    if len(question.names) > _MOST_ROWS:
        line(f"... and {len(question.names) - _MOST_ROWS} more")
    if question.targets is not None:
        correct = int((reply.outputs.argmax(1) == question.targets).sum())
        line(f"accuracy {correct / len(question.names):.2%} ({correct} of {len(question.names)})")
    p50, p95 = (percentile(reply.latencies_ms, percent) for percent in (50, 95))
    line(
        f"{len(reply.latencies_ms)} requests of {min(batch, len(question.names))}: latency p50 {p50:.1f} ms,"
        f" p95 {p95:.1f} ms; {len(question.names) / reply.seconds:.1f} samples/s"
    )


def _draw(path: Path, question: Question, reply: Reply) -> None:
    from msl.metrics.pictures import MOST, draw

    probability, label = reply.probabilities.max(1)
    labels = [
        f"{question.class_name(int(one))} {float(share):.0%}" for one, share in zip(label, probability, strict=True)
    ]
    known = question.targets
    right = [None if known is None else bool(known[i] == label[i]) for i in range(len(labels))]
    draw(path, question.inputs[0][:MOST].numpy(), labels[:MOST], right[:MOST])
    line(f"the images and their labels are in {path}")
