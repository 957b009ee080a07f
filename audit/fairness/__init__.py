"""Fairness over groups of people: group tables, metrics and their intervals."""
