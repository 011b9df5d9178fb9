"""Asks a service for the classes of samples, with nothing but sockets, struct, json and numpy.

This application does not know the package that serves it. It follows docs/protocol.md, section "A service":

    python examples/plain_client.py HOST PORT SERVICE [samples.npy]
"""

import argparse
import json
import socket
import struct

import numpy as np

# Numbers are little-endian. A header has 32 bytes:
#   0 magic, 4 version, 5 kind, 6 flags, 8 step, 12 micro_batch, 16 batch_samples, 20 num_tensors, 22 reserved, 24 body
HEADER = struct.Struct("<4sBBHIIIHHQ")
# A tensor's descriptor has 64 bytes:
#   0 dtype, 1 ndim, 2 codec, 3 layout, 4 role, 5 flags, 6 reserved, 8 num_bytes, 16 eight dimensions, 48 reserved
DESCRIPTOR = struct.Struct("<6BHQ8I16x")
MAGIC, VERSION = b"MSLF", 2
HELLO, WELCOME, FORWARD, RESULT, ERROR, PING = 1, 2, 3, 5, 8, 9
DTYPES = {1: "<f4", 2: "<f8", 3: "<f2", 5: "i1", 6: "u1", 7: "<i2", 8: "<i4", 9: "<i8", 10: "?"}


def main() -> None:
    """Connect, ask once, print."""
    arguments = argparse.ArgumentParser(description="Ask a service for the classes of samples.")
    arguments.add_argument("host")
    arguments.add_argument("port", type=int)
    arguments.add_argument("service", help="name of the service")
    arguments.add_argument("samples", nargs="?", help=".npy file of shape (n, ...); random samples if left out")
    arguments.add_argument("--save", help=".npy file for the outputs")
    asked = arguments.parse_args()
    with socket.create_connection((asked.host, asked.port), timeout=60) as sock, sock.makefile("rb") as stream:
        sock.sendall(document(HELLO, {"service": asked.service}))
        welcome = json.loads(receive(stream, WELCOME)[1])
        (wanted,) = welcome["inputs"]  # a model with one input
        print("path:", " -> ".join(f"{hop['name']} on {hop['host']}" for hop in welcome["path"]))
        if asked.samples:
            samples = np.load(asked.samples)
        else:
            samples = np.random.default_rng(0).normal(size=(4, *wanted["shape"]))
        sock.sendall(request(0, samples.astype(wanted["dtype"])))
        outputs = tensor(*receive(stream, RESULT))
    if asked.save:
        np.save(asked.save, outputs)
    exponents = np.exp(outputs - outputs.max(axis=1, keepdims=True))  # softmax: (n, classes) to probabilities
    for index, row in enumerate(exponents / exponents.sum(axis=1, keepdims=True)):
        print(f"sample {index}: class {row.argmax()}, probability {row.max():.3f}")


def document(kind: int, content: dict) -> bytes:
    """A frame that carries a JSON document, and no tensors."""
    body = json.dumps(content).encode()
    return HEADER.pack(MAGIC, VERSION, kind, 0, 0, 0, 0, 0, 0, len(body)) + body


def request(number: int, samples: np.ndarray) -> bytes:
    """A FORWARD with one tensor; its answer has the same number."""
    code = next(code for code, name in DTYPES.items() if np.dtype(name) == samples.dtype)
    payload = samples.tobytes()
    padding = bytes(-len(payload) % 64)  # payloads end at multiples of 64
    dims = (*samples.shape, *[0] * (8 - samples.ndim))
    descriptor = DESCRIPTOR.pack(code, samples.ndim, 0, 0, 0, 0, 0, len(payload), *dims)
    body = descriptor + payload + padding
    return HEADER.pack(MAGIC, VERSION, FORWARD, 0, 0, number, len(samples), 1, 0, len(body)) + body


def receive(stream, due: int) -> tuple[int, bytes]:
    """The next frame: its number of tensors, and its body."""
    while True:
        magic, version, kind, _, _, _, _, num_tensors, _, size = HEADER.unpack(exactly(stream, HEADER.size))
        if magic != MAGIC or version != VERSION:
            raise SystemExit("whoever answers there does not speak this protocol")
        body = exactly(stream, size)
        if kind == ERROR:
            raise SystemExit(f"refused: {json.loads(body)['message']}")
        if kind == due:
            return num_tensors, body
        if kind != PING:  # a PING says only that the other side lives
            raise SystemExit(f"a frame of kind {kind}, where {due} was due")


def exactly(stream, num_bytes: int) -> bytes:
    """The next bytes of the stream, all of them."""
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise SystemExit("the service closed the connection")
    return data


def tensor(num_tensors: int, body: bytes) -> np.ndarray:
    """The first tensor of a body: all descriptors come first, then the payloads."""
    dtype, ndim, _, layout, _, _, _, num_bytes, *dims = DESCRIPTOR.unpack_from(body)
    start = num_tensors * DESCRIPTOR.size
    flat = np.frombuffer(body[start : start + num_bytes], DTYPES[dtype])
    if layout == 1:  # stored as N, H, W, C
        n, c, h, w = dims[:4]
        return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return flat.reshape(dims[:ndim])


if __name__ == "__main__":
    main()
