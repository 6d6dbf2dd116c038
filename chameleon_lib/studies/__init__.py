"""What the notebooks call: a folder per section of the paper, and the rooms they share."""
