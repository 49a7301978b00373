"""Routing capture in programs that answer users: `attach`, and the server."""
