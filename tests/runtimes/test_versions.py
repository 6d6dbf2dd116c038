"""What the serving notebook calls tested are the versions that the runtimes are made with."""

from __future__ import annotations

import json
import re

from chameleon_lib.kit.paths import environment_file, notebooks_dir
from tests.runtimes.environments import RUNTIMES

# Of the packages of an environment, the runtime itself.
OWN = {name: packages[0] for name, packages in RUNTIMES.items()}


def test_the_routes_of_the_serving_notebook_name_the_versions_that_are_run() -> None:
    notebook = json.loads((notebooks_dir() / "07_serving.ipynb").read_text(encoding="utf-8"))
    (page,) = ("".join(cell["source"]) for cell in notebook["cells"] if cell["id"] == "runtimes")
    rows = re.findall(r"^\| .+ \| ([^|]+) \|$", page, flags=re.MULTILINE)
    tested = set()
    for package, versions in re.findall(
        r"([A-Za-z][\w-]+) (\d\S*(?: and \d\S*)?)", "\n".join(rows)
    ):
        tested |= {f"{package.lower()}=={one.strip(',')}" for one in versions.split(" and ")}
    pinned = re.findall(r"- (peft==\S+)", environment_file().read_text(encoding="utf-8"))
    assert tested == {*OWN.values(), *pinned}
