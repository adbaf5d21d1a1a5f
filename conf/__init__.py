"""Hydra's configuration; a package so that it travels in the wheel."""
