from __future__ import annotations

from collections.abc import Iterator

import pytest

from chameleon_lib.sections.serving import study as serving
from chameleon_lib.sections.serving.answers import Row, one_query
from chameleon_lib.sections.serving.forms import Shipped, ship
from chameleon_lib.sections.serving.study import Service
from tests.sections.small import BACKBONES, SETTINGS, small_kit, small_profile

PROFILE = small_profile(studied=BACKBONES)
USERS = 3


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """Three users of both families, on tiny random models.

    For this folder alone: elsewhere the kit must not open its tiny models instead of others.
    """
    with small_kit(tmp_path_factory.mktemp("serving")) as _:
        settings = SETTINGS.with_(edit_positions="all", decode_max_new_tokens=4)
        yield serving.run(PROFILE, settings, task="LaMP_7", users=USERS)


@pytest.fixture(scope="package")
def batches(services: list[Service]) -> list[list[Row]]:
    return [one_query(service) for service in services]


@pytest.fixture(scope="package")
def shipped(services: list[Service], batches: list[list[Row]]) -> list[Shipped]:
    return [ship(service, rows) for service, rows in zip(services, batches, strict=True)]
