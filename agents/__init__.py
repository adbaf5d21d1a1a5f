"""Searchers, the policy, and the commands that people type."""
