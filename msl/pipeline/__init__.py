"""Torch: cutting a model into stages, and the loop that receives, computes and sends. No Ray."""
