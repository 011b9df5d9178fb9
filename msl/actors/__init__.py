"""Ray: the members of a chain as actors, the cluster they run in, and the training run that drives them."""
