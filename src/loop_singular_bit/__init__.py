"""Loop Singular Bit: compress a causal language model and run it inside stated budgets."""
