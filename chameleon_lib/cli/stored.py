"""Commands on stored edit profiles: list, explain, forget, export and serve them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import typer
from typer import Argument
from typer import Option as Opt

from chameleon_lib.cli.options import PLAIN, STORE
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths

app = typer.Typer(**PLAIN)
stored = typer.Typer(help="List, show and forget stored edit profiles.", **PLAIN)
app.add_typer(stored, name="profiles")


@stored.command("list")
def list_profiles(
    store: Path = STORE, limit: int = Opt(1000, min=0, metavar="N", help="profiles to print")
) -> None:
    """All profiles; of a store of many users the first ones, and how many there are."""
    from chameleon_lib.serving.sharded import open_store

    count = size = 0
    for info in open_store(store).infos():
        if count < limit:
            print(info)
        count, size = count + 1, size + info.bytes
    if count > limit:
        print(f"... and {count - limit:,} more (--limit)")
    print(f"{count:,} profile{'' if count == 1 else 's'}, {size:,} bytes")


@stored.command("show")
def show_profile(
    key: str = typer.Argument(..., metavar="KEY", help="user or group"), store: Path = STORE
) -> None:
    """One profile: where it came from and what it edits."""
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    print(profiles.info(key))
    print(json.dumps(profiles.content(key), indent=1, sort_keys=True))


@stored.command("explain")
def explain(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
) -> None:
    """Which edit answers a user, and why; a user whom no fit saw is asked with answer --store."""
    from chameleon_lib.serving.sharded import open_store

    print(open_store(store).answering(user).why)


@stored.command("forget")
def forget_user(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    cache: Path | None = Opt(None, metavar="DIR", help="also empty this cache (.chameleon)"),
    outputs: list[Path] = Opt(
        [], metavar="DIR",
        help="also empty these outputs of a profile (outputs/demo-data), or those of all but the "
        "demo (outputs); repeatable",
    ),
    serving: list[Path] = Opt(
        [], metavar="DIR",
        help="also clean this serving folder; those that profiles of the store were exported into "
        "are known, unless they were moved (may be given more than once)",
    ),  # fmt: skip
) -> int:
    """Remove a user's profiles and their exports, and empty what runs can fill again."""
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    # The committed demo holds invented users alone: what a reader gives gets into other folders.
    demo = paths.outputs_dir("demo")
    runs = sorted(run for run in demo.parent.glob("*") if run != demo and run.is_dir())
    beside = {paths.cache_dir(): "repeat with --cache", paths.own_notebooks_dir(): "look there"}
    beside |= dict.fromkeys(runs, "repeat with --outputs")
    all_runs = [at for at in outputs if at.resolve() == demo.parent.resolve()]
    named = [at for at in outputs if at not in all_runs] + (runs if all_runs else [])
    done = profiles.forget(user, cache=cache, outputs=named, serving=serving, beside=beside)
    print(done)
    return 1 if done.unreadable else 0


@app.command()
def export(
    store: Path | None = Opt(None, metavar="DIR", help="the profile store"),
    to: Path | None = Opt(None, metavar="DIR", help="serving folder"),
    backbone: str | None = Opt(
        None, metavar="ID", help="demo:<family>:<seed>, the folder of a checkpoint, or a hub id"
    ),
    every: bool = Opt(False, "--all", help="all profiles of this backbone"),
    profile_key: str | None = Opt(None, metavar="KEY", help="the profile of one user or group"),
    form: Literal["peft", "merged", "gguf"] = Opt("peft", "--format"),
    rank: int = Opt(2, metavar="N", help="2, or more to pad the factors with zeros"),
    served_model: str | None = Opt(
        None, metavar="NAME",
        help="what the server calls the base, letter by letter (default: where it is loaded from)",
    ),  # fmt: skip
    positions: Literal["as_fitted", "all"] = Opt(
        "as_fitted",
        help="'all' exports the same directions as an edit of every token, which is another edit "
        "than the one that was fitted and scored",
    ),
    dtype: str = Opt(
        "auto", help="precision of the base; merged weights keep that of its files with auto"
    ),
    prune: bool = Opt(
        False, "--prune",
        help="with --all: delete old versions, and adapters of profiles no longer in the store",
    ),  # fmt: skip
    served: Path | None = Opt(
        None, metavar="GGUF",
        help="with --format gguf: also run each adapter on this file of the base, in llama.cpp",
    ),  # fmt: skip
    check: Path | None = Opt(
        None, metavar="ADAPTER", help="write nothing: does this adapter.gguf belong to --base?"
    ),
    base: Path | None = Opt(None, metavar="GGUF", help="with --check: the model that serves it"),
) -> None:
    """Write stored profiles as adapters, merged checkpoints or GGUF adapters.

    Every export is reloaded from its files and compared with the hook before it counts.
    """
    if (check is None) != (base is None):
        raise UserError("--check ADAPTER and --base MODEL belong together; give both.")
    if check is not None and base is not None:
        from chameleon_lib.serving.gguf_base import check_adapter

        print(check_adapter(check, base))
        return
    if store is None or to is None or backbone is None:
        raise UserError(
            "Give --store, --to and --backbone, or --check and --base to check an adapter."
        )
    if served is not None and form != "gguf":
        raise UserError("--served runs GGUF adapters; give --format gguf with it.")
    if every == (profile_key is not None):
        raise UserError("Give either --all or --profile-key KEY.")
    if prune and not every:
        raise UserError("--prune needs --all: one profile does not tell which others are wanted.")
    from chameleon_lib.serving.sharded import open_store

    profiles = open_store(store)
    from chameleon_lib.serving.folder import ServingFolder, export_profiles, open_base

    model = open_base(backbone, dtype)
    folder = ServingFolder(to, model, form=form, rank=rank, base_model=served_model)
    done = export_profiles(profiles, folder, profile_key, every_token=positions == "all")
    for one in done:
        print(f"{'wrote' if one.new else 'kept '} {one.model}")
        if served is not None:
            print(f"      {folder.measured(one, served)}")
    names = [one.name for one in done]
    if prune:
        for path in folder.prune(names):
            print(f"deleted {path.name}")
    elif every and (stale := folder.stale(names)):
        print(
            f"{len(stale)} folders are old versions or of profiles no longer in the store; "
            "--prune deletes them."
        )
    print("\n".join(["", *folder.how_to_serve(done[0].model)]))


# --- serving --------------------------------------------------------------------------------------


@app.command()
def token(
    user: str = Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    revoke: bool = Opt(False, "--revoke", help="make the user's tokens invalid instead"),
) -> None:
    """Make a token for a user of a server, and print it once: the store keeps its hash alone."""
    from chameleon_lib.serving.sharded import open_store
    from chameleon_lib.serving.tokens import Tokens

    found = open_store(store)
    tokens = Tokens(found.root)
    if revoke:
        print(f"{tokens.revoke(user)} tokens are invalid now.")
        return
    print(found.answering(user).why, file=sys.stderr)
    print(tokens.make(user))


@stored.command("served")
def served_name(
    user: str = typer.Argument(..., metavar="USER", help="id of the user, as it was fitted"),
    store: Path = STORE,
    positions: Literal["as_fitted", "all"] = Opt("as_fitted", help="as CHAMELEON_POSITIONS says"),
) -> None:
    """What a gateway asks vLLM for on behalf of a user (serving/vllm_resolver.py says who may)."""
    from chameleon_lib.serving.vllm_resolver import AdapterFolder

    name = AdapterFolder(store, Path(), every_token=positions == "all").name_of(user)
    print("the base model itself" if name is None else name)


@app.command()
def serve(
    store: Path = STORE,
    backbone: str = Opt(
        "chameleon_lib/demo/decoder-0", metavar="MODEL",
        help="the model that the edits were fitted on: folder, hub id or smollm2",
    ),  # fmt: skip
    host: str = Opt("127.0.0.1", help="address to listen at"),
    port: int = Opt(8080, min=0, max=65535, help="0 takes a free one"),
    dtype: str = Opt("auto", help="precision of the model"),
    waiting: int = Opt(256, min=1, metavar="N", help="requests that may wait; one more gets 503"),
    rows: int = Opt(64, min=1, metavar="N", help="requests of one batch"),
    characters: int = Opt(20_000, min=1, metavar="N", help="of a prompt"),
    new_tokens: int = Opt(256, min=1, metavar="N", help="of an answer"),
    edits: bool = Opt(True, "--edits/--no-edits", help="without edits the base answers everybody"),
    check: bool = Opt(False, "--check", help="check that users are kept apart, and end"),
) -> None:
    """Answer OpenAI's requests with everybody's own edit; who asks is told by a token.

    Before it listens it runs two users and the base interleaved in one batch, in sequence and after
    an aborted request, and refuses to start unless each is answered as if alone.
    """
    from chameleon_lib.serving.folder import open_base
    from chameleon_lib.serving.server import Limits, Service
    from chameleon_lib.serving.server import serve as answering

    limits = Limits(waiting=waiting, rows=rows, characters=characters, new_tokens=new_tokens)
    service = Service.of(store, open_base(backbone, dtype), limits, edits=edits)
    for line in answering(service, host, port, only_check=check):
        print(line, flush=True)
