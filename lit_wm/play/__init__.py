"""A trained world to play with: what it begins from, and what is done in it. Written against ``lit_wm/contract.py`` alone."""
