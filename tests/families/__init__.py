"""One case for each model that attach() recognises: `python -m families`, in tests/, prints what came out."""
