"""Statistics of scores: intervals, paired differences, bootstrap, power."""
