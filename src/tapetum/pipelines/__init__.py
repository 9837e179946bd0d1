"""Roads through the house, one file each, and the runner that takes many inputs along them."""
