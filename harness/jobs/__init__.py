"""The jobs of the command, one table of them, and what happens when all of a sweep's are done."""
