"""The last cell of every notebook: what decided its numbers, without time, host or path."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from IPython.display import HTML

from chameleon_lib.backbones import revisions
from chameleon_lib.kit import paths
from chameleon_lib.kit.facts import run_facts, save_run_facts
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.tables import show_table


def show(profile: RunProfile, data: Mapping[str, str]) -> HTML:
    """Record the data hashes of this notebook, and show them with the other facts of the run.

    ``data`` maps a name to the hash of the users that were read.
    """
    save_run_facts(profile.name, data)
    facts = run_facts(profile.name, data)
    rows = [
        ("profile", profile.name),
        ("environment.yml", facts["environment_sha256"][:16]),
        ("python", facts["python"]),
        *[(name, version) for name, version in facts["versions"].items()],
        ("threads", str(facts["threads"])),
        *[(f"model {name.split('/')[-2]}", sha[:16]) for name, sha in facts["models"].items()],
        *revisions.told(paths.outputs_dir(profile.name) / revisions.LOCK_NAME),
        *[(f"users {name}", sha[:16]) for name, sha in data.items()],
    ]
    frame = pd.DataFrame(rows, columns=["what", "value"])
    return show_table(frame, f"What decided these numbers ({profile.name} profile)")
