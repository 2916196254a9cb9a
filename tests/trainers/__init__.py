"""The trainers that people use, for an epoch or two beside the same loop by hand: `make test-trainers`."""
