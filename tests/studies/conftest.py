from __future__ import annotations

import pytest

from tests.studies.finished import Finished, finish


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run for all tests that only look at it, or go on from its store."""
    return finish(tmp_path_factory.mktemp("units"))
