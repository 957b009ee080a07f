"""Fairness over groups of people: group tables, metrics and their intervals."""

from audit.fairness.metrics import Assessment, assess

__all__ = ["Assessment", "assess"]
