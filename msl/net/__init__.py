"""Sockets, frames and namespaces: how bytes get from hop to hop. No torch, no Ray."""
