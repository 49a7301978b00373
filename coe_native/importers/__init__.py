"""Routing statistics and masks that other tools have written."""
