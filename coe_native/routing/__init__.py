"""Routing profiles, and the scores that follow from them."""
