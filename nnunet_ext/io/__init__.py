"""Files to (array, Grid) and back: the only room where array axes are swapped."""
