"""Which path a chain should take: a pure function of what was measured. No kernel, no Ray, no clock of its own."""
