"""The method on one backbone and task of a run, opened by their names at the first use."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from chameleon_lib.core.backbone import Backbone, Embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit import progress
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.loading import open_backbone, open_embedder


class Study(Chameleon):
    """:class:`Chameleon` opened by a run's names, with the artifact store as its keeper.

    Args:
        profile: Run profile.
        backbone_id: One of its backbones.
        task: Task name.
        settings: Every choice of the method.
        store: Artifact store; the default one if None.

    Raises:
        UserError: Settings with a ``pairs_k_max``.
    """

    code = ("chameleon_lib.backbones", "chameleon_lib.backbones.embedder")

    def __init__(
        self,
        profile: RunProfile,
        backbone_id: str,
        task: str,
        settings: EditSettings,
        store: ArtifactStore | None = None,
    ) -> None:
        if settings.pairs_k_max is not None:
            raise UserError(
                "pairs_k_max belongs to Chameleon.fit; leave it at None in a study, whose groups "
                "have group_size users."
            )
        self.profile, self.backbone_id, self.task = profile, backbone_id, task
        self.settings = settings
        self.keep = self.store = store or ArtifactStore()

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use."""
        return open_backbone(self.backbone_id, self.settings, self.profile)

    @cached_property
    def embedder(self) -> Embedder:
        """The sentence embedder, loaded on first use."""
        return open_embedder(self.settings.selection_embedder, self.profile.offline)

    def tell(self, note: str) -> None:
        """Say what takes long while it runs."""
        progress.tell(note)

    def with_(self, **changes: Any) -> Study:
        """The same study with some settings changed."""
        settings = self.settings.with_(**changes)
        return Study(self.profile, self.backbone_id, self.task, settings, self.store)

    def inputs(self, *prefixes: str) -> dict[str, Any]:
        """For a store key: backbone, task and the settings that start with one of ``prefixes``."""
        return self._inputs(self.task, *prefixes)
