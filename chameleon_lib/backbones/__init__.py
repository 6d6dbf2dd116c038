"""Frozen language models and sentence embedders behind the protocols of the core."""

from __future__ import annotations

from chameleon_lib.backbones.batches import EditUsage, PreparedBatches
from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.load import backbone_from, load_backbone

__all__ = ["EditUsage", "HFBackbone", "PreparedBatches", "backbone_from", "load_backbone"]
