"""Speed as ratios against named references: ``python -m workshop.bench --help``."""
