"""Section 4.2, Table 1: users with a history."""
