"""Section 4.4, Figure 3: how many users a group needs."""
