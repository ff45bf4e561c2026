"""The papers' systems and their small siblings, one readable page each (package data)."""
