"""Section 4.6, Figure 5: how many history items, chosen by which rule."""
