"""Fairness over groups of people: group tables, metrics, their intervals, and replicates from counts."""

from audit.fairness.bootstrap import Bootstrapped, Resampled, bootstrap, resample
from audit.fairness.metrics import Assessment, assess

__all__ = ["Assessment", "Bootstrapped", "Resampled", "assess", "bootstrap", "resample"]
