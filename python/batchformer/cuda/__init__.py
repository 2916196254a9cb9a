"""What the CUDA kernels do on the machine at hand: `python -m batchformer.cuda --check`."""
