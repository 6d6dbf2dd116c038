"""Rivals beyond the paper's: every file here is imported, and registers what it holds."""
