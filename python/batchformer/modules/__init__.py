"""The nn.Modules: they hold parameters, decide on train or eval, and know which axis is the batch."""
