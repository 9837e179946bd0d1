"""Positions on the sky."""
