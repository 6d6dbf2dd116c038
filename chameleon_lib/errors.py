"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, told in one clear sentence that names the file, the record and the fix."""

    exit_code = 2  # of the command line
