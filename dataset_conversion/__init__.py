"""One file per source dataset: its layout, labels, licence and known faults."""
