from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.data.server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, out of reach of any proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with running() as found:
        yield found
