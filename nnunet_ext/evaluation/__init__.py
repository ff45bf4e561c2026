"""How good a label map is: metrics with their empty cases, sides, statistics and reports. No torch."""
