"""Backends: open a session, order units, report units done and units lost, close."""
