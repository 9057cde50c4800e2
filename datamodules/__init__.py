"""Where experience comes from: environments, recorders, WebDataset shards and the Lightning data modules that read them.

Nothing in here imports ``lit_wm``; the arrow points the other way.
"""
