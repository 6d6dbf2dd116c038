"""The editing core: tensors and strings in, tensors and strings out; no files, no globals."""
