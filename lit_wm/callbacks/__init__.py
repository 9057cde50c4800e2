"""Lightning callbacks that any route can use."""
