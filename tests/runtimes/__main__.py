"""Makes the environments of other runtimes, runs the exports in them and prints what came out.

    CHAMELEON_RUNTIMES=DIR python -m tests.runtimes [RUNTIME ...]

Some gigabytes, SmolLM2 and, for llama-cpp-python, ten minutes of compiling; what is there is kept.
"""

from __future__ import annotations

import sys

import pytest

from chameleon_lib.kit import wheels
from tests.runtimes import environments
from tests.runtimes.exports import SMOL


class Table:
    """One line per test, with the numbers and versions that its runtime gave."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.found: dict[str, object] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            name = report.nodeid.partition("::test_")[2]
            why = f": {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else ""
            self.lines.append(f"{report.outcome:8} {name}{why}")
            if self.found:
                told = (
                    f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in self.found.items()
                )
                self.lines.append(f"         {'; '.join(told)}")
            self.found = {}


def main() -> int:
    """Exit status of the tests."""
    chosen = sys.argv[1:] or list(environments.RUNTIMES)
    try:
        print(wheels.fetch(SMOL), flush=True)
    except wheels.NotFetched as reason:
        print(reason, flush=True)
    for runtime in chosen:
        print(f"{runtime}: {environments.make(runtime)}", flush=True)
    table, run = Table(), environments.run

    def told(runtime: str, job: str, **words: object) -> dict[str, object]:
        table.found = run(runtime, job, **words)
        return table.found

    environments.run = told
    status = pytest.main(["-q", "tests/runtimes", "-p", "no:cacheprovider"], plugins=[table])
    print("\n".join(table.lines))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
