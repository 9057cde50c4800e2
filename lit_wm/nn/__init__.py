"""Building blocks that two routes or more share. Pure torch."""
