"""Many users on one base: forms of an edit, their cost, and the answers (beyond the paper)."""
