"""Offline searches over a model's heads, one a method: which pattern, threshold, anchor or window each head gets."""
