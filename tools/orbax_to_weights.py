#!/usr/bin/env python3
"""A checkpoint of WSRL or SERL (Orbax, written by flax) as a file of weights that `fieldtune policy import` takes.

Read are actor, critics, target critics and temperature of an agent with a state as its observation: Dense, LayerNorm or
not, ReLU, heads for mean and log standard deviation (or a vector for the latter). The activation is not in a checkpoint:
ReLU is what these agents must have been trained with (in WSRL they are; SERL's default is swish), so say it with --relu.
An ensemble of 2 k critics becomes k members of two critics, each with the same actor. Their shared output layer is
copied to each. What has no place (images, other widths) is refused by name.

usage: orbax_to_weights.py CHECKPOINT OUT.safetensors --relu [--std-min 1e-5] [--std-max 10]
       fieldtune policy import OUT.safetensors --config ROBOT.toml --out BUNDLE --raw-state
Needs: numpy safetensors orbax-checkpoint.
"""
import argparse, math, os, sys

import numpy as np
import orbax.checkpoint
from safetensors.numpy import save_file


def flat(tree, prefix=""):
    """Leaves by path."""
    if isinstance(tree, dict):
        return {path: leaf for name, part in tree.items() for path, leaf in flat(part, f"{prefix}{name}/").items()}
    return {prefix[:-1]: np.asarray(tree, np.float32)} if tree is not None else {}


class Module:
    """The parameters of one module; every one must be used."""

    def __init__(self, leaves, *names):
        for name in names:
            self.left = {k.removeprefix(f"{name}/"): v for k, v in leaves.items() if k.startswith(f"{name}/")}
            if self.left:
                break
        else:
            sys.exit(f"the checkpoint has no {names[0]}; there are {sorted({'/'.join(k.split('/')[:2]) for k in leaves})}")
        self.name = name

    def take(self, name):
        if name not in self.left:
            sys.exit(f"{self.name} has no {name}; there are {sorted(self.left)}")
        return self.left.pop(name)

    def hidden(self):
        """(kernel, bias, norm) of every hidden layer; kernels (inputs, outputs) or (critics, inputs, outputs)."""
        layers = []
        while f"network/Dense_{len(layers)}/kernel" in self.left:
            i = len(layers)
            norm = None
            dense = [self.take(f"network/Dense_{i}/{part}") for part in ("kernel", "bias")]
            if f"network/LayerNorm_{i}/scale" in self.left:
                norm = [self.take(f"network/LayerNorm_{i}/{part}") for part in ("scale", "bias")]
            layers.append((*dense, norm))
        if not layers:
            sys.exit(f"{self.name} is no MLP of Dense layers; there are {sorted(self.left)}")
        return layers

    def end(self):
        if self.left:
            sys.exit(f"{self.name}: {sorted(self.left)} have no place in such a network")


def actor(leaves):
    module = Module(leaves, "params/modules_actor")
    layers = module.hidden()
    mean = [module.take(f"Dense_0/{part}") for part in ("kernel", "bias")]
    if "log_stds" in module.left:
        deviation = [np.zeros_like(mean[0]), module.take("log_stds")]
    else:
        deviation = [module.take(f"Dense_1/{part}") for part in ("kernel", "bias")]
    module.end()
    return [*layers, (np.concatenate([mean[0], deviation[0]], -1), np.concatenate([mean[1], deviation[1]], -1), None)]


def critics(leaves, tree):
    module = Module(leaves, f"{tree}/modules_critic")
    layers = module.hidden()
    count = layers[0][0].shape[0] if layers[0][0].ndim == 3 else 1
    if count < 2 or count % 2:
        sys.exit(f"{module.name} holds {count} critics; needed is an even number")
    head = [np.broadcast_to(module.take(f"Dense_0/{part}"), (count, *shape))
            for part, shape in (("kernel", (layers[-1][0].shape[-1], 1)), ("bias", (1,)))]
    module.end()
    return count // 2, [*layers, (*head, None)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--relu", action="store_true", required=True, help="the networks were trained with ReLU")
    parser.add_argument("--std-min", type=float, default=1e-5, help="the agent's clip of the standard deviation")
    parser.add_argument("--std-max", type=float, default=10.0)
    args = parser.parse_args()
    leaves = flat(orbax.checkpoint.PyTreeCheckpointer().restore(os.path.abspath(args.checkpoint)))
    # The agent is the state itself, or kept under a name of its own.
    root = next((k[:k.index("params/modules_actor")] for k in leaves if "params/modules_actor" in k
                 and "target" not in k and "opt" not in k), "")
    leaves = {k.removeprefix(root): v for k, v in leaves.items()}
    tensors = {}

    def put(network, layers, pick):
        for i, (kernel, bias, norm) in enumerate(layers):
            parts = {f"w{i}": kernel, f"b{i}": bias}
            if norm:
                parts |= {f"scale{i}": norm[0], f"shift{i}": norm[1]}
            tensors.update({f"{network}.{k}": np.ascontiguousarray(pick(v)) for k, v in parts.items()})

    members, layers = critics(leaves, "params")
    put("actor", actor(leaves), lambda v: np.repeat(v[None], members, 0))
    for tree, names in (("params", ("critic1", "critic2")), ("target_params", ("target1", "target2"))):
        count, layers = critics(leaves, tree)
        if count != members:
            sys.exit(f"{tree} holds {2 * count} critics, params {2 * members}")
        for k, name in enumerate(names):
            put(name, layers, lambda v: v[k::2])
    tensors["log_std"] = np.array([math.log(args.std_min), math.log(args.std_max)], np.float32)
    temperature = Module(leaves, "params/modules_temperature")
    lagrange = float(temperature.take("lagrange").reshape(()))
    temperature.end()
    tensors["log_alpha"] = np.array([math.log(math.log1p(math.exp(lagrange)))], np.float32)
    save_file(tensors, args.out)
    print(f"{args.out}: {members} members with two critics each, "
          f"{tensors['actor.w0'].shape[1]} observation entries")


if __name__ == "__main__":
    main()
