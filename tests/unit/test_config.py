"""The configuration file: what may be left out, and how each mistake is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from msl.config import Config, load_config, to_yaml
from msl.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MINIMAL = """\
name: tiny
model:
  factory: my.models:Net
  args: {width: 8}
data:
  factory: my.data:load
split:
  stages: 2
train:
  epochs: 1
"""
NEEDED = "model: {factory: 'my.models:Net'}\ndata: {factory: 'my.data:load'}\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def call(text: str, *overrides: str) -> Config:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return call


@pytest.fixture
def refusal(load: Any, tmp_path: Path) -> Any:
    """What a text is refused with, without the file's name."""

    def call(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(f"{tmp_path / 'job.yaml'}: ")

    return call


def test_ten_lines_are_a_whole_job(load: Any) -> None:
    assert len(MINIMAL.splitlines()) == 10
    config = load(MINIMAL)
    assert (config.name, config.split.stages, config.train.epochs) == ("tiny", 2, 1)
    assert config.model.args == {"width": 8}


def test_only_model_and_data_have_no_default(load: Any) -> None:
    config = load(NEEDED)
    assert config.train.optimizer.factory == "torch.optim:SGD"
    assert config.train.loss.factory == "torch.nn:CrossEntropyLoss"
    assert config.train.micro_batch <= config.train.batch_size
    assert (config.hosts, config.chain.nsfs, config.split.cut, config.train.schedule) == ((), None, None, None)
    assert config.chain.stage_at_source
    assert config.fabric == "auto"


def test_a_host_may_be_written_as_its_bare_name(load: Any) -> None:
    config = load(NEEDED + "hosts: [a, {name: b, cpus: 4}]")
    assert [(host.name, host.cpus) for host in config.hosts] == [("a", None), ("b", 4)]


def test_an_exponent_without_a_point_is_a_number(load: Any) -> None:
    config = load(NEEDED + "train: {optimizer: {factory: 'torch.optim:SGD', args: {lr: 1e-3}}}", "model.args.eps=-2E5")
    assert config.train.optimizer.args == {"lr": 0.001}
    assert config.model.args == {"eps": -2e5}


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        # Typing errors.
        ("trian: {epochs: 3}", "trian: no such setting; did you mean 'train'?"),
        ("train: {epoch: 3}", "train.epoch: no such setting; did you mean 'epochs'?"),
        ("hosts: [{name: a, cpu: 2}]", "hosts[0].cpu: no such setting; did you mean 'cpus'?"),
        ("hosts: [{nam: a}]", "hosts[0].nam: no such setting; did you mean 'name'?"),
        (
            "train: {schedule: {factory: 'a:b', evry: step}}",
            "train.schedule.evry: no such setting; did you mean 'every'?",
        ),
        ("train: {optimizer: {factory: 'a:b', lr: 1}}", "train.optimizer.lr: no such setting; there are factory, args"),
        (
            "hosts: [edge, cloud]\nchain: {sink: clud}",
            "chain.sink: 'clud': no such host in hosts; did you mean 'cloud'?",
        ),
        # Wrong types.
        ("train: {epochs: many}", "train.epochs: 'many': must be a whole number"),
        ("train: {epochs: 2.5}", "train.epochs: 2.5: must be a whole number"),
        ("train: {epochs: true}", "train.epochs: True: must be a whole number"),
        ("timeouts: {step_s: soon}", "timeouts.step_s: 'soon': must be a number"),
        ("chain: {stage_at_source: 1}", "chain.stage_at_source: 1: must be true or false"),
        ("split: {cut: layer2}", "split.cut: 'layer2': must be a list, e.g. [a, b]"),
        ("split: {cut: [layer2, 3]}", "split.cut[1]: 3: must be text"),
        ("hosts: {a: 1}", "hosts: a mapping: must be a list, e.g. [a, b]"),
        (
            "hosts: [a, 3]",
            "hosts[1]: 3: must be a mapping with name, cpus, ray_node, address, interfaces, locator, mtu",
        ),
        ("train: {optimizer: adam}", "train.optimizer: 'adam': must be a mapping with factory, args"),
        ("checkpoint: [1]", "checkpoint: a list: must be a mapping with every, keep"),
        ("cluster: {runtime_env: 3}", "cluster.runtime_env: 3: must be a mapping, e.g. {name: value}"),
        ("train:", "train: is empty; give it a value, or leave it out"),
        ("train: {1: 2}", "train: 1: must be text, as all names are"),
        ("cluster: {runtime_env: {1: 2}}", "cluster.runtime_env: 1: must be text, as all names are"),
        # Out of range.
        ("train: {epochs: 0}", "train.epochs: 0: must be at least 1"),
        ("split: {stages: 65}", "split.stages: 65: must be at most 64"),
        ("timeouts: {silence_s: 0}", "timeouts.silence_s: 0: must be more than 0"),
        ("timeouts: {silence_s: .nan}", "timeouts.silence_s: nan: must be at most 86400"),
        ("seed: -1", "seed: -1: must be at least 0"),
        ("cluster: {network: lan}", "cluster.network: 'lan': must be 'private' or 'host'"),
        # Values that do not fit each other.
        (
            "train: {micro_batch: 100}",
            "train.micro_batch: 100: is larger than batch_size (64); make it at most that",
        ),
        (
            "split: {cut: [a], stages: 2}",
            "split.stages: 2: give either 'cut' (names of modules) or 'stages', not both",
        ),
        ("split: {cut: [a, b, a]}", "split.cut[2]: 'a': is named twice"),
        ("hosts: [a, b, a]", "hosts[2]: 'a': another host has this name"),
        ("hosts: [a, b]\nchain: {source: x}", "chain.source: 'x': no such host in hosts; there are a, b"),
        ("hosts: [a, b]\nchain: {nsfs: [b, y]}", "chain.nsfs[1]: 'y': no such host in hosts; there are a, b"),
        (
            "cluster: {address: '10.0.0.1:6379'}",
            "hosts: is missing; name the hosts of the existing cluster at cluster.address",
        ),
        # Text of a certain form.
        (
            "train: {loss: {factory: CrossEntropyLoss}}",
            "train.loss.factory: 'CrossEntropyLoss': an import path reads 'package.module:name',"
            " e.g. msl.models.resnet:resnet18",
        ),
        (
            "hosts: [a, {name: b, address: 10.0.0}]",
            "hosts[1].address: '10.0.0': must be an IPv4 or IPv6 address of the host, e.g. 10.0.0.2",
        ),
        (
            "cluster: {address: 10.0.0.1}",
            "cluster.address: '10.0.0.1': must be HOST:PORT of the Ray cluster's head, e.g. 10.0.0.1:6379",
        ),
    ],
)
def test_a_mistake_is_told_with_its_path_its_value_and_what_would_be_right(
    refusal: Any, text: str, wording: str
) -> None:
    assert refusal(NEEDED + text) == wording


@pytest.mark.parametrize("name", ["", "-a", "a b", "../a", "a" * 49])
@pytest.mark.parametrize("where", ["name: {}", "hosts: [{{name: {}}}]", "cluster: {{name: {}}}", "chain: {{sink: {}}}"])
def test_a_name_is_no_path_and_no_option(refusal: Any, where: str, name: str) -> None:
    assert refusal(NEEDED + where.format(f"'{name}'")).endswith(
        f": {name!r}: a name is 1 to 48 letters, digits, '.', '_' or '-', and starts with a letter or digit"
    )


def test_a_typing_error_of_a_needed_setting_is_told_once(refusal: Any) -> None:
    assert refusal("modle: {factory: 'a:b'}\ndata: {factory: 'a:b'}") == "modle: no such setting; did you mean 'model'?"


def test_what_is_needed_and_missing_is_named(refusal: Any) -> None:
    assert refusal("seed: 3") == "model: is missing; data: is missing"


def test_all_mistakes_of_a_file_are_told_at_once(refusal: Any) -> None:
    message = refusal(NEEDED + "train: {epochs: 0}\nseed: x\nsead: 1")
    assert message.split("; ") == [
        "seed: 'x': must be a whole number",
        "train.epochs: 0: must be at least 1",
        "sead: no such setting",
        "did you mean 'seed'?",
    ]


def test_a_long_value_is_cut_short(refusal: Any) -> None:
    assert len(refusal(NEEDED + f"seed: {'x' * 5000}")) < 150


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("", "holds nothing, a configuration is a mapping like 'model: ...'"),
        ("[a]", "holds a list, a configuration is a mapping like 'model: ...'"),
        ("model", "holds 'model', a configuration is a mapping like 'model: ...'"),
        ("a: 1\nb: [", "is not YAML: line 2, column 5: expected the node content, but found '<stream end>'"),
        ("a: b: c", "is not YAML: line 1, column 5: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3", "is not YAML: line 3, column 1: 'a' stands here twice"),
        ("a: {b: 1, b: 2}", "is not YAML: line 1, column 11: 'b' stands here twice"),
        ("a: 2024-13-45", "is not YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(refusal: Any, text: str, wording: str) -> None:
    assert refusal(text) == wording


@pytest.mark.parametrize("text", ["? [a]\n: 1", "a: !!map [b]", "a: !!python/object:os.system b", "[" * 5000, "\x00"])
def test_strange_yaml_is_refused_in_one_line(refusal: Any, text: str) -> None:
    assert refusal(text).startswith("is not YAML: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file or directory$"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 text$"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=7", "train.epochs", 7),
        ("name=other", "name", "other"),
        ("split.cut=[layer2, layer3]", "split.cut", ("layer2", "layer3")),
        ("hosts.1.cpus=3", "hosts.1.cpus", 3),
        ("chain.nsfs.0=b", "chain.nsfs.0", "b"),
        ("model.args.deep.er=0.5", "model.args.deep.er", 0.5),
        ("train.schedule={factory: 'a:b', every: step}", "train.schedule.every", "step"),
        ("train.optimizer.args.lr=0.5", "train.optimizer.args.lr", 0.5),
        ("name=a=b", "name", None),
    ],
)
def test_an_override_wins_over_the_file(load: Any, override: str, path: str, value: object) -> None:
    text = NEEDED + "train: {epochs: 3}\nhosts: [a, {name: b}, c]\nchain: {nsfs: [c]}"
    if value is None:  # only the first '=' divides; 'a=b' is no name
        with pytest.raises(ConfigError, match=r"name: 'a=b': a name is .* \(--set name=a=b\)$"):
            load(text, override)
        return
    found: Any = load(text, override)
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_the_last_of_two_overrides_wins(load: Any) -> None:
    assert load(NEEDED, "seed=1", "seed=2").seed == 2


def test_an_override_within_a_default_keeps_the_rest_of_it(load: Any) -> None:
    optimizer = load(NEEDED, "train.optimizer.args.lr=0.5").train.optimizer
    assert optimizer.factory == "torch.optim:SGD"
    assert optimizer.args == {"lr": 0.5, "momentum": 0.9}


@pytest.mark.parametrize(
    ("override", "wording"),
    [
        ("train.epochs", "--set train.epochs: write it as path.to.value=VALUE, e.g. train.epochs=5"),
        ("=5", "--set =5: write it as path.to.value=VALUE, e.g. train.epochs=5"),
        ("train..epochs=5", "--set train..epochs=5: write it as path.to.value=VALUE, e.g. train.epochs=5"),
        (
            "seed=[",
            "--set seed=[: '[' is not a YAML value: line 1, column 2: expected the node content, but found"
            " '<stream end>'",
        ),
        ("name.x=1", "--set name.x=1: name is 'job', not a mapping"),
        ("hosts.2=c", "--set hosts.2=c: hosts has entries 0 to 1"),
        ("hosts.-1=c", "--set hosts.-1=c: hosts has entries 0 to 1"),
        ("hosts.b.cpus=1", "--set hosts.b.cpus=1: hosts has entries 0 to 1"),
        ("chain.nsfs.0=c", "--set chain.nsfs.0=c: chain.nsfs is an empty list"),
        ("train.epochs=0", "train.epochs: 0: must be at least 1 (--set train.epochs=0)"),
        ("train.epochs=", "train.epochs: is empty; give it a value, or leave it out (--set train.epochs=)"),
        ("train.epoch=3", "train.epoch: no such setting; did you mean 'epochs'? (--set train.epoch=3)"),
        (
            "train.optimizer=sgd",
            "train.optimizer: 'sgd': must be a mapping with factory, args (--set train.optimizer=sgd)",
        ),
    ],
)
def test_a_wrong_override_is_told_as_it_was_written(refusal: Any, override: str, wording: str) -> None:
    assert refusal(NEEDED + "name: job\nhosts: [a, b]\nchain: {nsfs: []}", override) == wording


def test_a_mistake_of_the_file_is_not_blamed_on_an_override(refusal: Any) -> None:
    message = refusal(NEEDED + "train: {epochs: 0}", "train.batch_size=128")
    assert message == "train.epochs: 0: must be at least 1"


def test_a_configuration_cannot_be_changed(load: Any) -> None:
    config = load(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 2
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_resolved_configuration_reads_back_equal(load: Any, path: Path) -> None:
    config = load_config(path)
    assert load(to_yaml(config)) == config


def test_values_that_yaml_might_mistake_read_back_equal(load: Any) -> None:
    args = {"a": None, "b": "1e-3", "c": 1e-7, "d": "yes", "e": [1, [2.5]], "f": {"null": "~"}, "g": "2024-01-01"}
    model = {"factory": "my.models:Net", "args": args}
    config = Config.model_validate({"model": model, "data": {"factory": "a:b", "args": {"same": args["e"]}}})
    assert load(to_yaml(config)) == config


def test_the_resolved_configuration_names_every_setting(load: Any) -> None:
    tree = yaml.safe_load(to_yaml(load(NEEDED)))
    assert list(tree) == list(Config.model_fields)
    assert tree["train"]["epochs"] == 5


def test_there_are_configurations_to_start_from() -> None:
    assert (CONFIGS / "resnet.yaml").exists()
