"""Sections of the pages that docs/make_tables.py writes."""
