"""The figures and tables of SeerAttention (arXiv 2410.13276), drawn from this project's records beside the published values.

A file each draws one item; `items` lists them, `published.csv` holds what the paper and its release say.
"""
