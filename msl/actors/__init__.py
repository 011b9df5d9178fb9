"""Ray: the members of a chain as actors, the cluster they run in, and the training run that drives them."""

import os

# Ray reads this when it is imported. It would otherwise join a cluster at a given address without its token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Ray's driver prints what raylets report, pages of it when one dies; msl says in a line what happened.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
