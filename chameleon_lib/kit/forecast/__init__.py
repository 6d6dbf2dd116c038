"""What a run will cost before it starts: texts, tokens, hours, memory, disk and downloads."""
