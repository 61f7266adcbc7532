"""Offline searches: what a method must know of a model's heads before it runs."""
