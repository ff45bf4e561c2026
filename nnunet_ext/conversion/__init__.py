"""What all converters share: cases, checks, orientation, writing, folds, report. Knows no single source."""
