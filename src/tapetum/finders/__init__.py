"""Finders: data in, scored table out. Each has `Config`, `load` and `find`."""
