"""Intervals, tests and sample sizes behind every number of the audit: pure functions over counts and arrays.

Each interval is chosen to be conservative where an exact one is out of reach: it may be too wide, it should not be too narrow.
An interval that is too narrow would let a policy pass, or accuse a network, on noise.
"""

from audit.stats.base import MIN_BOOTSTRAP, Floats, Interval, Ints, Side
from audit.stats.calibration import ReliabilityBins, ece, reliability_bins
from audit.stats.differences import difference, mean_of_proportions, mover, newcombe_difference, paired_difference
from audit.stats.groups import max_min_gap, pairwise_differences, worst_of
from audit.stats.limits import holm, p_beyond
from audit.stats.planning import plan_size
from audit.stats.proportions import clopper_pearson, clopper_pearson_limits, wilson
from audit.stats.ranking import auroc, auroc_difference, average_precision
from audit.stats.regression import effective_size, enough_of, mean_absolute_error, paired_mean, r_squared

__all__ = [
    "MIN_BOOTSTRAP",
    "Floats",
    "Interval",
    "Ints",
    "ReliabilityBins",
    "Side",
    "auroc",
    "auroc_difference",
    "average_precision",
    "clopper_pearson",
    "clopper_pearson_limits",
    "difference",
    "ece",
    "effective_size",
    "enough_of",
    "holm",
    "max_min_gap",
    "mean_absolute_error",
    "mean_of_proportions",
    "mover",
    "newcombe_difference",
    "p_beyond",
    "paired_difference",
    "paired_mean",
    "pairwise_differences",
    "plan_size",
    "r_squared",
    "reliability_bins",
    "wilson",
    "worst_of",
]
