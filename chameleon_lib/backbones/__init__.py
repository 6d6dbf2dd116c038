"""Frozen language models and sentence embedders behind the protocols of the core."""

from __future__ import annotations

from chameleon_lib.backbones.backbone import HFBackbone
from chameleon_lib.backbones.embedder import SentenceEmbedder, load_embedder
from chameleon_lib.backbones.models import backbone_from, load_backbone
from chameleon_lib.backbones.prepared import EditUsage, PreparedBatches
from chameleon_lib.backbones.sites import SITES, site_modules, site_paths
from chameleon_lib.core.protocols import Backbone, DecodeSettings, Embedder, Prepared

__all__ = [
    "SITES",
    "Backbone",
    "DecodeSettings",
    "EditUsage",
    "Embedder",
    "HFBackbone",
    "Prepared",
    "PreparedBatches",
    "SentenceEmbedder",
    "backbone_from",
    "load_backbone",
    "load_embedder",
    "site_modules",
    "site_paths",
]
