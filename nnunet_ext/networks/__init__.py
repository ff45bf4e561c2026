"""Networks that plans name by dotted path: torch only, one architecture per file."""
