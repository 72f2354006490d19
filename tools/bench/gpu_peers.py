"""usage: gpu_peers.py torch|jax WORKLOAD RECORD: milliseconds, by the clock, of an update in the peers of
tools/bench/peers on the GPU. RECORD is made by `fieldtune bench learner --record`. For tools/gpu-check."""
import functools
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))
import common


def torch_peers(workload):
    import torch

    # The peer is written for the processor: its arrays and scalars go to the GPU, its optimisers can be captured.
    torch.from_numpy = (lambda host: lambda array: host(array).cuda())(torch.from_numpy)
    torch.set_default_device("cuda")
    torch.optim.Adam = functools.partial(torch.optim.Adam, capturable=True)
    import torch_peer

    torch_peer.torch.set_float32_matmul_precision("highest")
    for name, compiled, captured in [("eager", 0, 0), ("eager, CUDA graph", 0, 1), ("compiled, CUDA graph", 1, 1)]:
        peer = torch_peer.Peer(workload, bool(compiled))

        def steps(peer=peer, captured=captured):
            placed = peer.place(first)
            if not captured:
                return lambda: peer.update(placed)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(5):
                    peer.update(placed)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                peer.update(placed)
            return graph.replay

        yield f"PyTorch {name}", peer, steps, torch.cuda.synchronize


def jax_peers(workload):
    import jax
    import jax_peer

    if jax.default_backend() != "gpu":
        sys.exit("this JAX sees no GPU")
    peer = jax_peer.Peer(workload)

    def steps():
        placed = peer.place(first)
        return lambda: peer.finish(peer.update(placed))

    yield "JAX jit", peer, steps, lambda: None


library, workload, path = sys.argv[1:]
record = common.read(path)
first = common.inputs(record, 0, workload)
for name, peer, steps, wait in {"torch": torch_peers, "jax": jax_peers}[library](workload):
    try:
        peer.load(common.networks(record, "before", workload))
        step = steps()
        for _ in range(20):
            step()
        wait()
        times = []
        for _ in range(200):
            start = time.perf_counter()
            step()
            wait()
            times.append((time.perf_counter() - start) * 1e3)
        print(f"{workload}, {name}: {statistics.median(times):.3f} ms (median), {sorted(times)[198]:.3f} ms (p99)")
    except Exception as error:  # the next way may work
        print(f"{workload}, {name}: failed: {type(error).__name__}: {str(error)[:300]}")
