"""Verbs: one module a command."""
