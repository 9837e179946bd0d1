"""Alerts, objects, light curves and scores on disk: written once, never lost, never doubled."""
