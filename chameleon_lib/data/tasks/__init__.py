"""The tasks of the benchmark: every module of this folder registers one when it is imported.

To add a task, add a file; nothing names it anywhere else.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
