"""Notebook 06: controls, ambiguities and dose-response."""
