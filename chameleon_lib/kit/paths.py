"""Every folder the kit reads or writes, so that nothing depends on the working directory.

JupyterLab starts a kernel in `notebooks/`, pytest in the checkout, the driver in a scratch folder;
with all paths taken from here the three behave alike.
"""

from __future__ import annotations

import os
from pathlib import Path

from chameleon_lib.errors import UserError

WRITTEN = "CHAMELEON_WRITTEN"  # variable that names a file; what is replaced is noted in it


def root() -> Path:
    """The checkout: the folder that holds the package."""
    return Path(__file__).resolve().parents[2]


def package_dir() -> Path:
    """The package `chameleon_lib` itself."""
    return root() / "chameleon_lib"


def notebooks_dir() -> Path:
    """The source notebooks, stored without outputs."""
    return root() / "notebooks"


def own_notebooks_dir() -> Path:
    """A reader's copies of the notebooks, to be run, changed and saved; git ignores them."""
    return root() / "my_notebooks"


def environment_file() -> Path:
    """`environment.yml`, the one list of dependencies."""
    return root() / "environment.yml"


def outputs_dir(profile: str) -> Path:
    """What readers look at: `outputs/<profile>/`.

    Args:
        profile: name of a run profile, as in `profiles.PROFILES`.

    Returns:
        The folder below `CHAMELEON_OUTPUTS` if that is set, else below `outputs/` of the checkout.

    Raises:
        UserError: if `profile` is not a plain folder name.
    """
    if not profile.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"'{profile}' is not the name of a run profile.")
    override = os.environ.get("CHAMELEON_OUTPUTS")
    return (Path(override).absolute() if override else root() / "outputs") / profile


def executed_dir(profile: str) -> Path:
    """Executed notebooks of a run profile."""
    return outputs_dir(profile) / "notebooks"


def tables_dir(profile: str) -> Path:
    """Tables (CSV) of a run profile."""
    return outputs_dir(profile) / "tables"


def figures_dir(profile: str) -> Path:
    """Figures (PNG, SVG, the CSV behind them, alt text and caption) of a run profile."""
    return outputs_dir(profile) / "figures"


def verdicts_dir(profile: str) -> Path:
    """Computed verdicts, one JSON file per notebook."""
    return outputs_dir(profile) / "verdicts"


def measured_dir(profile: str) -> Path:
    """Wall-clock measurements: they differ from run to run, so git ignores them."""
    return outputs_dir(profile) / "measured"


def cache_dir() -> Path:
    """Artifact store, ledger and private Jupyter folders; `CHAMELEON_CACHE` moves it."""
    override = os.environ.get("CHAMELEON_CACHE")
    return Path(override).absolute() if override else root() / ".chameleon"


def display(path: Path) -> str:
    """A path as shown to readers: relative to the checkout where possible."""
    try:
        return path.relative_to(root()).as_posix()
    except ValueError:
        return str(path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content, never a part of it.

    Args:
        path: target; its folder is made if needed.
        text: content, written as UTF-8 with the line ends it has.
    """
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file through a temporary name in the same folder, then rename it.

    Args:
        path: target; its folder is made if needed.
        content: what it shall hold.
        durable: wait until content and name are on the disk, so that a power cut loses neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)
    log = os.environ.get(WRITTEN)
    if log:
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{path.absolute()}\n")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
