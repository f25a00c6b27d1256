"""A small, seeded, MPDD-shaped data set of drawn metal parts, so that the study's scripts run offline."""
