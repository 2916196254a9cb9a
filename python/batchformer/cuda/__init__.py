"""What the CUDA kernels do on this machine: `python -m batchformer.cuda --check`."""
