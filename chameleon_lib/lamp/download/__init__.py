"""Official LaMP files over HTTP: what there is, how it comes, and how it is checked."""

from __future__ import annotations

from chameleon_lib.lamp.download.catalogue import (
    BASE_URL,
    PARTS,
    SPLITS,
    OfficialFile,
    folder_of,
    official_files,
)
from chameleon_lib.lamp.download.lock import LOCK
from chameleon_lib.lamp.download.run import download
from chameleon_lib.lamp.download.transfer import Listener, Manners

__all__ = [
    "BASE_URL",
    "LOCK",
    "PARTS",
    "SPLITS",
    "Listener",
    "Manners",
    "OfficialFile",
    "download",
    "folder_of",
    "official_files",
]
