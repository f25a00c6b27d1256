"""What the code needs of the machine: devices, memory, clocks, files."""
