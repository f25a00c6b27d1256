"""What a run leaves: its folder, the tables in it, and the names of the files."""
