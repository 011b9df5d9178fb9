"""Asks a service: the client's side of docs/protocol.md, with numpy arrays or torch tensors in and out.

with msl.Client("10.0.0.1:7400", "digits") as client:
    logits = client.predict(images)
"""

from msl.client.client import Client
from msl.client.pending import Pending

__all__ = ["Client", "Pending"]
