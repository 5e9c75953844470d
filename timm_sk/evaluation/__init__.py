"""Evaluation of classifiers on data sets."""
