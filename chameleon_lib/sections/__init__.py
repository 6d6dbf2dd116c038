"""One module per section of the paper: what a notebook calls, from users to tables."""

from __future__ import annotations

__all__ = [
    "answering",
    "arms",
    "cells",
    "data",
    "estimates",
    "fits",
    "loading",
    "methods",
    "parallel",
    "per_user",
    "provenance",
    "quickstart",
    "study",
    "table1",
    "table1_views",
]
