"""Benchmarks: printed as ratios to a named rival in the same run. ``make bench`` runs them all."""
