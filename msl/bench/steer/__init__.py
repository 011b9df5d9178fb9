"""`msl bench steer`: what changes of path, congestion and failures do to a running chain."""
