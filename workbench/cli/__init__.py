"""The command line: what its words are, and what they do; :mod:`workbench.__main__` reads them."""
