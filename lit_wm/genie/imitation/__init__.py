"""Behaviour from video: a policy learns latent actions that a frozen model reads off an expert's frames (Genie, appendix E)."""
