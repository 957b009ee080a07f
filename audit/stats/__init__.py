"""Intervals, tests and sample sizes behind every number of the audit: pure functions over counts and arrays.

Each interval is chosen to be conservative where an exact one is out of reach: it may be too wide, it should not be too narrow.
An interval that is too narrow would let a policy pass, or accuse a network, on noise.
"""

from audit.stats.base import MIN_BOOTSTRAP, Floats, Interval, Ints, Side
from audit.stats.bootstrap import bca_bootstrap, bca_levels, percentile_bootstrap, studentised_bootstrap
from audit.stats.calibration import ReliabilityBins, ece, reliability_bins
from audit.stats.counts import (
    Intervals,
    Statistic,
    bootstrap_counts,
    draw_counts,
    gap_by_bootstrap,
    gap_by_limits,
    ratio_by_limits,
    smooth_counts,
)
from audit.stats.differences import difference, mean_of_proportions, miettinen_nurminen, mover, newcombe_difference
from audit.stats.groups import max_min_gap, pairwise_differences, worst_of
from audit.stats.limits import p_beyond
from audit.stats.multiple import benjamini_hochberg, holm
from audit.stats.paired import mcnemar, paired_difference, paired_mean
from audit.stats.permutation import permutation_test, sign_flip_test
from audit.stats.planning import plan_size, power_of_difference, power_of_pairs, power_of_share, size_for
from audit.stats.proportions import clopper_pearson, clopper_pearson_limits, mid_p, mid_p_limits, wilson, wilson_limits
from audit.stats.ranking import auroc, auroc_bootstrap, auroc_difference, average_precision
from audit.stats.regression import effective_size, enough_of, mean_absolute_error, r_squared
from audit.stats.sequences import (
    betting_sequence,
    empirical_bernstein_sequence,
    sequential_interval,
    sequential_limits,
    sequential_p,
)

__all__ = [
    "MIN_BOOTSTRAP",
    "Floats",
    "Interval",
    "Intervals",
    "Ints",
    "ReliabilityBins",
    "Side",
    "Statistic",
    "auroc",
    "auroc_bootstrap",
    "auroc_difference",
    "average_precision",
    "bca_bootstrap",
    "bca_levels",
    "benjamini_hochberg",
    "betting_sequence",
    "bootstrap_counts",
    "clopper_pearson",
    "clopper_pearson_limits",
    "difference",
    "draw_counts",
    "ece",
    "effective_size",
    "empirical_bernstein_sequence",
    "enough_of",
    "gap_by_bootstrap",
    "gap_by_limits",
    "holm",
    "max_min_gap",
    "mcnemar",
    "mean_absolute_error",
    "mean_of_proportions",
    "mid_p",
    "mid_p_limits",
    "miettinen_nurminen",
    "mover",
    "newcombe_difference",
    "p_beyond",
    "paired_difference",
    "paired_mean",
    "pairwise_differences",
    "percentile_bootstrap",
    "permutation_test",
    "plan_size",
    "power_of_difference",
    "power_of_pairs",
    "power_of_share",
    "r_squared",
    "ratio_by_limits",
    "reliability_bins",
    "sequential_interval",
    "sequential_limits",
    "sequential_p",
    "sign_flip_test",
    "size_for",
    "smooth_counts",
    "studentised_bootstrap",
    "wilson",
    "wilson_limits",
    "worst_of",
]
