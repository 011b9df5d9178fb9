"""Ray: the members of a chain as actors, the cluster they run in, and the training run that drives them."""

import os

# Ray reads this when it is imported. It would otherwise join a cluster at a given address without its token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
