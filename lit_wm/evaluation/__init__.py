"""The scorecard: what may be compared across routes, each number beside its floor and its ceiling.

A measure is one file with pure functions of plain tensors; ``judge.py`` asks a model through the contract and calls
them; ``scorecard.py`` lays several runs side by side. Nothing here knows a route.
"""
