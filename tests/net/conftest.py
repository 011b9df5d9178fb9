import os
import signal
from collections.abc import Iterator

import pytest

from msl.errors import NetworkError
from msl.net.compiler import bcc_folder, kernel_headers
from tests.net.datapath import Datapath, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: it makes network namespaces"))


@pytest.fixture(scope="session")
def _host_with_a_proxy() -> Iterator[Datapath]:
    try:
        bcc_folder()
        kernel_headers()
    except NetworkError as error:
        pytest.skip(f"the proxy cannot be compiled: {error}")
    with running() as datapath:
        yield datapath


@pytest.fixture
def datapath(_host_with_a_proxy: Datapath) -> Datapath:
    """A host with a proxy that no packet has come to yet."""
    _host_with_a_proxy.clear()
    return _host_with_a_proxy


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
