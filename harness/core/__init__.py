"""What every room needs: settings of the command, errors, files, clocks."""
