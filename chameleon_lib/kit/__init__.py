"""The reproducibility kit: run profiles, artifact store, notebook driver, statistics, report.

Import from the modules themselves (`chameleon_lib.kit.store`, ...): the driver must start without
loading what only the notebooks need, so this package re-exports nothing.
"""

from __future__ import annotations

__all__: list[str] = []
