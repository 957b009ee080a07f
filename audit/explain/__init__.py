"""Explanations of predictions: one file a method, on one interface, and the tests of whether one can be believed."""
