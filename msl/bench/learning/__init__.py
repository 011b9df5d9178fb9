"""`msl bench msl`: a training step of the chain against torch's own pipeline over gloo, and against Ray calls."""
