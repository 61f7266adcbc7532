"""The command: what it may be told (arguments, help), the table of its jobs, a file for each, and how they run."""
