"""The chained command line: stages that return frozen configurations, shared by every script in bin/."""
