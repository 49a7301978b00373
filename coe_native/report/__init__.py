"""Self-contained HTML pages with charts of profiles, masks and sweeps."""
