"""PatchCore (Roth et al. 2021)."""
