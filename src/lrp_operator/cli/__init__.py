"""`lrpctl`, the people's tool; as `kubectl-lrp` on the PATH it is `kubectl lrp` too."""
