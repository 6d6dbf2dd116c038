"""`python -m chameleon_lib export`: a store of profiles as a folder that servers load."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress
from chameleon_lib.profiles.served import model_name, remember_folder

if TYPE_CHECKING:
    from chameleon_lib.backbones import HFBackbone
    from chameleon_lib.core.edit_profile import EditProfile
    from chameleon_lib.profiles.serving import Served, ServingFolder
    from chameleon_lib.profiles.store import ProfileInfo, ProfileStore

FORMATS = ("peft", "alora", "merged", "gguf")
POSITIONS = ("as_fitted", "all")
_READS = 5


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib export",
        description="Write stored profiles as adapters, merged checkpoints or GGUF adapters. Every "
        "export is reloaded from its files and compared with the hook before it counts.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="all profiles of this backbone")
    which.add_argument("--profile-key", metavar="KEY", help="the profile of one user or group")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="profile store")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="serving folder")
    parser.add_argument(
        "--backbone", required=True, metavar="ID",
        help="demo:<family>:<seed>, the folder of a checkpoint, or a hub id",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="peft")
    parser.add_argument(
        "--rank", type=int, default=2, metavar="N",
        help="2 (default), or more to pad the factors with zeros",
    )  # fmt: skip
    parser.add_argument(
        "--served-model", metavar="NAME",
        help="what the server calls the base, letter by letter (default: where it is loaded from)",
    )  # fmt: skip
    parser.add_argument(
        "--server", choices=("vllm", "sglang"), help="refuse what this server cannot load"
    )
    parser.add_argument(
        "--positions", choices=POSITIONS, default="as_fitted",
        help="'all' exports the same directions as an edit of every token, which is another edit "
        "than the one that was fitted and scored",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="precision of the base (default: auto)")
    parser.add_argument(
        "--prune", action="store_true",
        help="with --all: delete old versions, and adapters of profiles no longer in the store",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Exports, prints what was written and the commands that serve it.

    Returns:
        0.

    Raises:
        UserError: Bad arguments, a profile that the form cannot carry, a damaged store.
    """
    options = _parser().parse_args(argv)
    if options.prune and not options.all:
        raise UserError("--prune needs --all: one profile does not tell which others are wanted.")
    if not options.store.is_dir():
        raise UserError(f"There is no profile store {options.store}; give the folder of one.")
    # Torch loads here, so that --help and a mistyped option answer at once.
    from chameleon_lib.profiles.serving import ServingFolder

    backbone = open_backbone(options.backbone, options.dtype)
    serving = ServingFolder(
        options.to,
        backbone,
        form=options.format,
        rank=options.rank,
        base_model=options.served_model,
        server=options.server,
    )
    done = _export(options, backbone, serving)
    for served in done:
        print(f"{'wrote' if served.new else 'kept '} {served.model}")
    _tell_stale(options, serving, [served.name for served in done])
    print("\n".join(_how_to_serve(options, backbone, serving, done)))
    return 0


def open_backbone(backbone_id: str, dtype: str) -> HFBackbone:
    """The base by its id, named as the demo and the laptop profile name theirs."""
    from chameleon_lib.backbones import load_backbone
    from chameleon_lib.backbones.demo import checkpoint

    if not backbone_id.startswith("demo:"):
        return load_backbone(backbone_id, dtype=dtype)
    parts = backbone_id.split(":")
    if len(parts) != 3:
        raise UserError(f"--backbone {backbone_id} is not demo:<family>:<seed>.")
    return load_backbone(checkpoint(parts[1], parts[2]), name=backbone_id, dtype="float32")


def _export(
    options: argparse.Namespace, backbone: HFBackbone, serving: ServingFolder
) -> list[Served]:
    from chameleon_lib.profiles.store import ProfileStore

    store = ProfileStore(options.store)
    if options.profile_key is not None:
        store.load(options.profile_key, backbone)  # says what is wrong with it or the backbone
        infos = [store.info(options.profile_key)]
    else:
        infos = _of_backbone(store, backbone.name)
    # Noted first: a run that is killed half-way has written there, too.
    remember_folder(options.store, options.to)
    done = []
    with Progress("exports", len(infos)) as progress:
        for info in infos:
            name = model_name(info.group, info.id)
            if info.forgotten:
                raise UserError(
                    f"Group '{info.group}' still holds {info.forgotten} forgotten users; fit it "
                    "again before it is exported."
                )
            try:
                profile = _at_positions(_load(info), options.positions)
                done.append(serving.add(name, profile))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            progress.advance()
    return done


def _of_backbone(store: ProfileStore, name: str) -> list[ProfileInfo]:
    infos = store.list()
    chosen = [info for info in infos if info.backbone == name]
    if chosen:
        return chosen
    others = sorted({info.backbone for info in infos})
    found = f"profiles of {', '.join(others)} alone" if others else "no profile"
    raise UserError(
        f"The store {store.directory.root} holds {found}, none of {name}; name another backbone, "
        "or fit and save a profile first."
    )


def _load(info: ProfileInfo) -> EditProfile:
    """A profile by its file: a store hides its keys, also from whoever exports all of it."""
    from chameleon_lib.profiles.files import Stored, read_content, read_tensors
    from chameleon_lib.profiles.records import from_stored

    for _ in range(_READS):
        try:
            content = read_content(info.path)
            stored = Stored(content, read_tensors(info.path.parent, content))
        except FileNotFoundError:  # a writer replaced it between the two reads, or deleted it
            continue
        return from_stored(stored, info.path)
    raise UserError(f"{info.path} was deleted while it was exported; run the export again.")


def _at_positions(profile: EditProfile, positions: str) -> EditProfile:
    if positions == "as_fitted":
        return profile
    return replace(profile, edit=replace(profile.edit, positions=positions))


def _tell_stale(options: argparse.Namespace, serving: ServingFolder, names: list[str]) -> None:
    if options.prune:
        for path in serving.prune(names):
            print(f"deleted {path.name}")
    elif options.all:
        stale = serving.stale(names)
        if stale:
            print(
                f"{len(stale)} folders are old versions or of profiles no longer in the store; "
                "--prune deletes them."
            )


def _how_to_serve(
    options: argparse.Namespace, backbone: HFBackbone, serving: ServingFolder, done: list[Served]
) -> list[str]:
    """The commands for what was exported, or why a server cannot take it."""
    from chameleon_lib.profiles import commands
    from chameleon_lib.profiles.forms import server_refusal

    folder, base, rank, model = options.to, serving.base_model, options.rank, done[0].model
    decoder = backbone.family == "decoder"
    if options.format == "gguf":
        return ["", "# llama.cpp", *commands.gguf_lines(folder, base, model, decoder=decoder)]
    if options.format == "merged":
        title = "# one model per user"
        return ["", title, *commands.merged_lines(folder, model, decoder=decoder)]
    lines: list[str] = []
    for server, title in (("vllm", "vLLM 0.33.0"), ("sglang", "SGLang 0.5.23")):
        reason = server_refusal(backbone, server, alora=options.format == "alora")
        lines += ["", f"# {title}"]
        if reason is not None:
            lines.append(f"# {reason}")
        elif server == "vllm":
            lines += commands.vllm_command(folder, base, rank, models=len(done))
            lines.append(commands.vllm_request(model))
        else:
            lines += commands.sglang_command(base, rank, models=len(done))
            lines.append(commands.sglang_request(folder, model))
    return [*lines, "", "# PEFT", commands.peft_line(folder, base, model, decoder=decoder)]
