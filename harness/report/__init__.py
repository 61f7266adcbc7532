"""Reporting: leaderboards, tables and figures, made from records alone."""
