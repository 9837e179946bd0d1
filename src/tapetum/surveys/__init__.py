"""Surveys as data: one TOML profile per telescope, read into a typed object.

A new survey is one new file: in ``profiles/`` for everybody, or in ``$XDG_CONFIG_HOME/tapetum/surveys/`` for oneself.
"""
