"""`msl bench fabric`: what the SFC fabric costs, against plain TCP over the same links of one testbed."""
