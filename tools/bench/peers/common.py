"""What the peers of tools/bench/learner_peers share: recorded updates, comparison, slices of time.

A peer is a process: it makes the recorded updates, says how far it ends from the record, then times updates on the
first recorded one whenever a line with a number of seconds comes in.
"""
import json
import sys
import time

import numpy as np

DISCOUNT, LEARNING_RATE, TARGET_RATE = 0.99, 3e-4, 0.005
NORM_EPS, ADAM_EPS, GUARD = 1e-6, 1e-8, 1e-10
PRIORITY_TEMPERATURE, PRIORITY_RANGE = 5.0, (1e-3, 1e3)
LOG_STD = (-20.0, 2.0)
CRITIC_STEPS = 4
NETWORKS = {"off2onrl": ("actor", "critic", "target", "density"), "wsrl": ("actor", "critic", "target"),
            "pixels-shared": ("actor", "critic", "target"), "pixels-separate": ("actor", "critic", "target")}
# Encoders in the record: whose they are, "critic_eyes" for critics and, where all share one, actors.
EYES = {"pixels-shared": {"critic_eyes": ["actor"], "target_eyes": ["target"]},
        "pixels-separate": {"actor_eyes": ["actor"], "critic_eyes": ["critic1", "critic2"],
                            "target_eyes": ["target1", "target2"]}}
SIDE, CHANNELS = 48, 3


def read(path):
    """A safetensors file of f32 arrays."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        body = file.read()
    header.pop("__metadata__", None)
    return {name: np.frombuffer(body, "<f4", int(np.prod(entry["shape"])), entry["data_offsets"][0])
            .reshape(entry["shape"]).copy() for name, entry in header.items()}


def networks(record, when, workload):
    """{network: [layer: [weight (n, i, o), bias (n, 1, o)] or with scale and shift]}; twins in one stack of 2 n.

    Encoders: [weight (n, o, i, 3, 3), bias (n, o)] of each convolution, then the dense layer.
    """
    def stack(name):
        layers = []
        while f"{when}.{name}.{len(layers)}.weight" in record:
            prefix = f"{when}.{name}.{len(layers)}."
            layer = [record[prefix + "weight"], record[prefix + "bias"][:, None]]
            if prefix + "norm_scale" in record:
                layer += [record[prefix + "norm_scale"][:, None], record[prefix + "norm_bias"][:, None]]
            layers.append(layer)
        return layers

    def twins(name):
        return [[np.concatenate(pair) for pair in zip(*both)] for both in zip(stack(name + "1"), stack(name + "2"))]

    found = {name: twins(name) if name in ("critic", "target") else stack(name) for name in NETWORKS[workload]}
    for name, parts in EYES.get(workload, {}).items():
        all_of = lambda kind: np.concatenate([record[f"{when}.encoder.{part}.{kind}"] for part in parts])
        convolutions = [[all_of(f"w{i}"), all_of(f"b{i}")] for i in range(3)]
        found[name] = [*convolutions, [all_of("dense_w"), all_of("dense_b")[:, None]]]
    found["temperature"] = record[when + ".temperature_parameter"]
    return found


def rows(record, prefix):
    columns = ("observation", "action", "reward", "terminated", "next_observation")
    found = {column: record[f"{prefix}.{column}"] for column in columns}
    found["reward"], found["terminated"] = found["reward"][:, 0], found["terminated"][:, 0]
    found["pair"] = np.concatenate([found["observation"], found["action"]], 1)
    return found


def images(record, prefix):
    """`byte / 255` as (B, channels, height, width), each image moved, its border repeated."""
    bytes_, shifts = record[prefix].reshape(-1, SIDE, SIDE, CHANNELS), record[prefix + "_shift"].astype(int)
    place = lambda by: np.clip(np.arange(SIDE) + by, 0, SIDE - 1)
    moved = [image[place(down)][:, place(right)] for image, (down, right) in zip(bytes_, shifts)]
    return np.ascontiguousarray(np.stack(moved).transpose(0, 3, 1, 2)) / np.float32(255)


def inputs(record, index, workload):
    """Everything that one update is made of."""
    steps = []
    for step in range(CRITIC_STEPS if workload == "wsrl" else 1):
        batch = rows(record, f"{index}.{step}")
        batch["next_noise"] = record[f"{index}.{step}.next_noise"]
        if workload == "wsrl":
            batch["subset"] = record[f"{index}.{step}.subset"].astype(np.int32)
        steps.append(batch)
    found = {"noise": record[f"{index}.noise"]}
    if workload == "wsrl":
        found["temperature_noise"] = record[f"{index}.temperature_noise"]
        found["steps"] = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
        return found
    found |= steps[0]
    if workload in EYES:
        found |= {name: images(record, f"{index}.0.{name}") for name in ("image", "next_image")}
    else:
        found["online"] = rows(record, f"{index}.online")["pair"]
        found["offline"] = rows(record, f"{index}.offline")["pair"]
    return found


def difference(mine, theirs):
    """Root mean square of the differences of an array as a share of that of its entries, the largest of all arrays."""
    size = lambda array: float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
    return max(size(np.asarray(a, np.float64) - b) / max(size(b), 1e-6) for a, b in zip(mine, theirs))


def flat(tree):
    return [array for name in sorted(tree) for layer in (tree[name] if isinstance(tree[name], list) else [[tree[name]]])
            for array in layer]


def compared(tree, workload):
    """Arrays one by one; those of a network as one where there are encoders.

    The gradient of an encoder's bias, a sum over all places of all images, can be so near to 0 that rounding decides
    the direction of Adam's first step.
    """
    if workload not in EYES:
        return flat(tree)
    return [np.concatenate([np.ravel(array) for array in flat({name: tree[name]})]) for name in sorted(tree)]


def serve(workload, path, peer):
    """`peer`: load(networks), place(inputs), update(placed) -> losses (and priorities), number(loss), networks(), finish."""
    record = read(path)
    peer.load(networks(record, "before", workload))
    count = len({name.split(".")[0] for name in record if name[0].isdigit()})
    losses = 0.0
    for index in range(count):
        out = peer.update(peer.place(inputs(record, index, workload)))
        wanted = record[f"{index}.losses"][:4 if workload == "off2onrl" else 3]
        losses = max(losses, difference([peer.number(loss) for loss in out["losses"]], wanted))
        if "priorities" in out:
            losses = max(losses, difference([out["priorities"]], [record[f"{index}.priorities"]]))
    trees = peer.networks(), networks(record, "after", workload)
    parameters = difference(*(compared(tree, workload) for tree in trees))
    first = peer.place(inputs(record, 0, workload))
    for _ in range(5):
        peer.finish(peer.update(first))
    print(json.dumps({"losses": losses, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        until, times = time.monotonic() + float(line), []
        while not times or time.monotonic() < until:
            start = time.process_time_ns()
            peer.finish(peer.update(first))
            times.append((time.process_time_ns() - start) * 1e-6)
        print(json.dumps({"cpu_ms": float(np.median(times)), "updates": len(times)}), flush=True)
