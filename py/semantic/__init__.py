"""Label maps: palettes, snapping, remaps, coverage. Torch and numpy only."""
