"""Random calls, each beside torch in float64 or against a property: `make fuzz`, `make soak`."""
