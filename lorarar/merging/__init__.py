"""Merging: from a content and a style adapter, one. `registry.METHODS` is the table of contents."""
