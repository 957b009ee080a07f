"""Evaluations: which attacks run on which samples, in which order, with which budget, and when to stop."""
