"""Ground floor: what a worker is and how one is chosen. Standard library only, no I/O, no clock."""
