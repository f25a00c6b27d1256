"""Industrial visual anomaly detection with PatchCore and FastFlow."""

__version__ = "0.1.0"
