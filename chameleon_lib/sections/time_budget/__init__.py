"""Section 4.5, Figure 4: quality against compute."""
