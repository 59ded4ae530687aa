"""Engine: what executes a method."""
