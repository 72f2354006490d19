"""usage: gpu_peers.py [--cpu] torch eager|graph|compiled WORKLOAD RECORD, or jax jit: milliseconds, by the clock, of an
update in the peers of tools/bench/peers on the GPU, rows and noise already there. RECORD is made by `fieldtune bench
learner --record`; the peer has to agree with its losses first. One process for each way. For tools/gpu-check."""
import functools
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))
import common

TOLERANCE = 1e-3


def torch_peer(workload, way, cpu):
    import torch

    if not cpu:
        # The peer is written for the processor: its arrays and scalars go to the GPU, its optimisers can be captured.
        torch.from_numpy = (lambda host: lambda array: host(array).cuda())(torch.from_numpy)
        torch.set_default_device("cuda")
        torch.optim.Adam = functools.partial(torch.optim.Adam, capturable=True)
    import torch_peer as peers

    torch.set_float32_matmul_precision("highest")
    peer = peers.Peer(workload, way == "compiled")
    wait = (lambda: None) if cpu else torch.cuda.synchronize

    def steps(placed):
        if way == "eager":
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

    return peer, steps, wait


def jax_peer(workload, way, cpu):
    if cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax_peer as peers

    if not cpu and jax.default_backend() != "gpu":
        sys.exit("this JAX sees no GPU")
    jax.config.update("jax_default_matmul_precision", "highest")
    peer = peers.Peer(workload)
    return peer, lambda placed: lambda: peer.finish(peer.update(placed)), lambda: None


def main(library, way, workload, path, cpu):
    if workload not in common.NETWORKS:
        print(f"skipped: {library} has no {workload}")
        return 0
    record = common.read(path)
    peer, steps, wait = {"torch": torch_peer, "jax": jax_peer}[library](workload, way, cpu)
    peer.load(common.networks(record, "before", workload))
    found = peer.update(peer.place(common.inputs(record, 0, workload)))["losses"]
    wanted = record["0.losses"][:len(found)]
    off = common.difference([peer.number(loss) for loss in found], wanted)
    step = steps(peer.place(common.inputs(record, 0, workload)))
    rounds = 5 if cpu else 200
    for _ in range(rounds // 10):
        step()
    wait()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"{workload}, {library} {way}: {statistics.median(times):.3f} ms (median), "
          f"{sorted(times)[-1 - rounds // 100]:.3f} ms (p99); differs by {off:.1e} in losses")
    return int(off > TOLERANCE)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--cpu"]
    sys.exit(main(*arguments, cpu="--cpu" in sys.argv) if len(arguments) == 4 else __doc__)
