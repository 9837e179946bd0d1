"""Alerts, images and light curves made on the spot, with truth."""
