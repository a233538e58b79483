"""Evaluation of classifiers: metrics, analysis of errors, reports and plots."""
