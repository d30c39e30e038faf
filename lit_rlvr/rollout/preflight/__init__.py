"""What may not run is refused here before weights load, by what the parts of a run say of each other."""
