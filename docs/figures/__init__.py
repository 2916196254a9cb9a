"""The figures of the documentation that are drawn from its own tables, or from nothing: `make figures`."""
