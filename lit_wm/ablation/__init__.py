"""Ablations that run themselves: a file says what is compared and what is claimed, the verdict comes with intervals."""
