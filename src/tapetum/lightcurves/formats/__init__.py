"""Files of light curves: one way to open them all, and ways to write them."""
