"""Judges: rewards that another model gives, by scores, rubrics or comparisons, and reward models."""
