"""The parts of examples/long_tailed.py: data, model, training, report, figures."""
