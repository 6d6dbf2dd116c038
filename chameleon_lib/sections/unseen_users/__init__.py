"""Section 4.3, Table 2: users that no fit has seen."""
