"""Periods of light curves: periodograms on regular grids, significance, nested choice, aliases, errors."""
