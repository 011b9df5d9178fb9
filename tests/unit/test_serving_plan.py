"""Where the stages of a service stand."""

from __future__ import annotations

import pytest

from msl.config import Config
from msl.errors import ConfigError
from msl.plan import lay_out, serving_config
from tests.chains import make_config


def stages_of(config: Config) -> list[tuple[str, int | None]]:
    _, places = lay_out(serving_config(config))
    return [(place.host, place.stage) for place in places]


def test_a_stage_at_the_source_moves_behind_the_client() -> None:
    config = make_config(hosts=["n0", "n1", "n2", "n3"])
    assert stages_of(config) == [("n0", None), ("n1", 0), ("n1", 1), ("n2", 2), ("n3", 3)]


def test_without_hosts_they_are_numbered_as_in_training() -> None:
    hosts, _ = lay_out(serving_config(make_config()))
    assert hosts == ("n0", "n1", "n2", "n3")


def test_a_chain_with_all_stages_behind_the_source_stays_as_it_is() -> None:
    config = make_config(hosts=["a", "b", "c", "d", "e"], chain={"stage_at_source": False})
    assert stages_of(config) == [("a", None), ("b", 0), ("c", 1), ("d", 2), ("e", 3)]


def test_the_configuration_may_name_the_hosts() -> None:
    config = make_config(hosts=["n0", "n1", "n2", "n3"], serve={"hosts": ["n3", "n2", "n1", "n1"]})
    assert stages_of(config) == [("n0", None), ("n3", 0), ("n2", 1), ("n1", 2), ("n1", 3)]


def test_hosts_that_do_not_fit_are_refused() -> None:
    config = make_config(hosts=["n0", "n1", "n2", "n3"], serve={"hosts": ["n3", "n2"]})
    with pytest.raises(ConfigError, match=r"serve\.hosts: 2 hosts for 4 stages; name one for each"):
        serving_config(config)
    with pytest.raises(ValueError, match=r"serve\.hosts\[0\]: 'n9': no such host in hosts"):
        make_config(hosts=["n0", "n1", "n2", "n3"], serve={"hosts": ["n9", "n2", "n2", "n2"]})
