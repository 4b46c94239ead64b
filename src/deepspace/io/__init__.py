"""Readers: slides, sections, cohort sheets."""
