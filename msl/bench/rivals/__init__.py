"""What the chain is compared with: other ways to run the same stages on the same hosts of one session."""
