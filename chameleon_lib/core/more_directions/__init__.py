"""Directions beyond the paper's, one file each; what lies here is registered when one is looked up.

A file registers its direction with ``core.directions.direction`` and needs no other change.
"""
