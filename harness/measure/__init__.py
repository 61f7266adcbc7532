"""Measuring: what runs an arm and appends records. Nothing here draws or reads a leaderboard."""
