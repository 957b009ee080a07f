"""Hostile files, made by the tests: each with the proof that it would do harm elsewhere, and what audit must say of it."""
