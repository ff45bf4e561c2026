"""Studies: noise on purpose, several methods and seeds on one dataset, one table."""
