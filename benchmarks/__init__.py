"""Every stage of the toolkit against a plain reference: times, memory, and the difference of the results.

The references are written from the definitions (Roth et al. 2021 and the formats' own), to be read and to be
right. They are not part of the package.
"""
