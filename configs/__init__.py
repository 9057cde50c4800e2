"""Experiment files, one per experiment, installed as ``lit_wm.configs`` so that they are at hand outside a clone."""
