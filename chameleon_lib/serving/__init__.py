"""Edit profiles outside the laboratory: stored, exported, served and forgotten."""
