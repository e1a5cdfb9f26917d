"""Scores of masks, classes and lesions, and the statistics that the papers' tables print.

Dice and its like of two empty masks are 1, of one empty mask 0; distances with an empty mask are
NaN, left out of means and counted.
"""
