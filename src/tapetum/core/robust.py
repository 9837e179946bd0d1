"""Numbers of robust statistics that several rooms need."""

from __future__ import annotations

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation of a normal distribution per median absolute deviation: 1 / quantile(3/4)."""
