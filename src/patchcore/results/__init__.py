"""What a run leaves: its folder, the files in it, and the names of their columns."""
