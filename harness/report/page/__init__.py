"""The page: one HTML file without network, made of recorded rows, with the plotting library and the tables of others in it."""
