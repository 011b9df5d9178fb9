"""`msl bench msi`: a served model against the unsplit one, plain Ray calls and a Ray Compiled Graph."""
