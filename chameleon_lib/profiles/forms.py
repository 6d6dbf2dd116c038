"""What each form of export can carry; what it cannot is refused in one sentence.

Plain LoRA, merged weights and GGUF act on every token. A decoder's edit of the last prompt token
and the generated ones needs aLoRA, whose start is found by a token. An encoder-decoder starts from
one decoder token, so there the two are the same edit.
"""

from __future__ import annotations

from chameleon_lib.backbones import HFBackbone, site_paths
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.profiles.projections import projection, projection_path

FORMS = ("peft", "alora", "merged", "gguf")
SERVERS = ("vllm", "sglang")


def check_form(edit: Edit, backbone: HFBackbone, form: str) -> None:
    """Refuses an edit that the form cannot carry.

    Raises:
        UserError: In one sentence, with the form that can where there is one.
    """
    if form not in FORMS:
        raise UserError(f"The export form is '{form}'; choose one of {', '.join(FORMS)}.")
    reason = _edit_refusal(edit) or _position_refusal(edit, backbone, form)
    reason = reason or _model_refusal(edit, backbone, form)
    if reason is not None:
        raise UserError(reason)


def _edit_refusal(edit: Edit) -> str | None:
    if edit.per_row:
        return "This edit has one edit per batch row; export the users one by one."
    if edit.site != "mlp_out":
        return (
            f"An edit of the site {edit.site} is not an update of one matrix, so it cannot be "
            "exported; run it with the hook, or fit it with edit_site mlp_out."
        )
    if not edit.changes_anything:
        return "The strengths of this edit are all 0 after gating, so there is nothing to export."
    return None


def _position_refusal(edit: Edit, backbone: HFBackbone, form: str) -> str | None:
    decoder = backbone.family == "decoder"
    if edit.positions == "generated":
        return (
            "An edit of the generated tokens alone starts after the last prompt token, which no "
            "exported form can; run it with the hook."
        )
    if form == "alora" and not decoder:
        return (
            f"{backbone.name} is an encoder-decoder, whose edit needs no aLoRA: its decoder starts "
            "from one token; export it as peft, merged or gguf."
        )
    if form == "alora" and edit.positions == "all":
        return "An edit of all positions is a plain LoRA; export it as peft, merged or gguf."
    if form != "alora" and decoder and edit.positions == "last":
        return (
            f"The form {form} edits every token, this edit (edit_positions last) only the last "
            "prompt token and the generated ones; export it as alora, or set its positions to "
            "all, which is another edit with other answers."
        )
    return None


def _model_refusal(edit: Edit, backbone: HFBackbone, form: str) -> str | None:
    family = backbone.model.config.model_type
    entry = projection_path(family)
    if form == "alora" and site_paths(family).flat:
        return (
            f"{backbone.name} joins rows and tokens in its MLP, so aLoRA cannot find its place "
            "there; run the edit with the hook."
        )
    if entry.experts and form in ("alora", "gguf"):
        return (
            f"{backbone.name} keeps its experts in one stacked parameter, which an adapter in "
            f"{form} form does not reach; export the edit as "
            f"{'merged' if form == 'gguf' else 'positions all in peft form'}."
        )
    if form == "gguf" and entry.gguf is None:
        return f"The GGUF name table has no family '{family}'; export the edit as peft or merged."
    if form in ("gguf", "merged") and not entry.experts:
        found = projection(backbone, edit.layers[0])
        if form == "gguf" and found.bias is not None:
            return (
                f"{found.name} has a bias, which a GGUF adapter cannot carry; export the edit as "
                "peft or merged."
            )
        if form == "merged" and found.quantised:
            return (
                f"{found.name} is quantised, and merging would round it again; export an adapter, "
                "or load the backbone unquantised."
            )
    return None


def server_refusal(backbone: HFBackbone, server: str, *, alora: bool = False) -> str | None:
    """Why a stock server cannot load PEFT adapters of this base; None if it can.

    Args:
        backbone: The served model.
        server: ``vllm`` | ``sglang``.
        alora: Whether the adapters are aLoRAs.

    Raises:
        UserError: An unknown server.
    """
    if server not in SERVERS:
        raise UserError(f"The server is '{server}'; choose one of {', '.join(SERVERS)}.")
    title = {"vllm": "vLLM", "sglang": "SGLang"}[server]
    if backbone.family != "decoder":
        return f"{title} does not serve {backbone.name}, an encoder-decoder; use PEFT or merged."
    if projection_path(backbone.model.config.model_type).experts:
        return f"{title} is given down_proj matrices, {backbone.name} has experts; use merged."
    found = projection(backbone, 0)
    if found.bias is not None:
        return f"{found.name} has a bias, which {title} cannot edit; export the edit as merged."
    if not found.name.endswith(".down_proj"):
        return f"{title} is started for down_proj alone, this is {found.name}; use merged."
    if alora:
        return f"{title} runs no aLoRA, the form of an edit of the last position; use PEFT."
    return None
