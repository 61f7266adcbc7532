"""Trained gates: small layers that predict which key blocks matter, their weights, and the format of releases."""
