#!/usr/bin/env python3
"""The actor of a LeRobot SAC policy (config.json and model.safetensors) as an ONNX file with the deterministic action.

LeRobot's networks (Linear, LayerNorm, SiLU behind a Linear, LayerNorm, Tanh encoder) are not those that fieldtune
learns with, so the actor is brought as a graph: fieldtune policy import ACTOR.onnx. The action is tanh(mean), in [-1, 1].
LeRobot normalises observations in a processor beside the policy; say how with --state-mean and --state-std (.npy), or
--raw-state.

usage: lerobot_actor.py POLICY_FOLDER ACTOR.onnx (--state-mean FILE --state-std FILE | --raw-state)
Needs: numpy onnx safetensors. LeRobot itself is not needed.
"""
import argparse, json, os, sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

EPSILON = 1e-5  # PyTorch's LayerNorm


class Graph:
    def __init__(self):
        self.nodes, self.initializers, self.count = [], [], 0

    def constant(self, values):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, operator, *inputs, **attributes):
        self.count += 1
        self.nodes.append(helper.make_node(operator, list(inputs), [f"v{self.count}"], **attributes))
        return f"v{self.count}"

    def linear(self, x, tensors, name):
        return self.node("Gemm", x, self.constant(tensors.pop(f"{name}.weight")),
                         self.constant(tensors.pop(f"{name}.bias")), transB=1)

    def norm(self, x, tensors, name):
        return self.node("LayerNormalization", x, self.constant(tensors.pop(f"{name}.weight")),
                         self.constant(tensors.pop(f"{name}.bias")), axis=-1, epsilon=EPSILON)


def export(folder, out, mean=None, std=None):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    if config.get("type", "sac") != "sac" or "actor_network_kwargs" not in config:
        sys.exit(f"{folder}: a policy of type {config.get('type')}, exported is sac")
    if not config["policy_kwargs"].get("use_tanh_squash", False):
        sys.exit(f"{folder}: without use_tanh_squash the action is not in [-1, 1]")
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    tensors = {k.removeprefix("actor."): v for k, v in tensors.items() if k.startswith(("actor.", "encoder_"))}
    # A shared encoder is kept once, under the name of whoever came first.
    for shared in ("encoder_actor.", "encoder_critic."):
        for name in [k for k in tensors if k.startswith(shared)]:
            tensors.setdefault("encoder." + name.removeprefix(shared), tensors[name])
            del tensors[name]
    others = [k for k in tensors if k.startswith("encoder.") and not k.startswith("encoder.state_encoder.")]
    if others:
        sys.exit(f"{folder}: the actor also sees more than observation.state ({others[0]})")
    width = tensors["encoder.state_encoder.0.weight"].shape[1]
    graph, x = Graph(), "obs"
    if mean is not None:
        if len(mean) != width or len(std) != width:
            sys.exit(f"the state has {width} entries, mean {len(mean)}, std {len(std)}")
        x = graph.node("Div", graph.node("Sub", x, graph.constant(mean)), graph.constant(std))
    x = graph.linear(x, tensors, "encoder.state_encoder.0")
    x = graph.node("Tanh", graph.norm(x, tensors, "encoder.state_encoder.1"))
    index = 0
    while f"network.net.{index}.weight" in tensors:
        x = graph.linear(x, tensors, f"network.net.{index}")
        index += 1
        if tensors.get(f"network.net.{index}.weight", np.empty((0, 0))).ndim == 1:
            x = graph.norm(x, tensors, f"network.net.{index}")
            x = graph.node("Mul", x, graph.node("Sigmoid", x))
            index += 2
    action_dim = tensors["mean_layer.bias"].shape[0]
    x = graph.linear(x, tensors, "mean_layer")
    graph.nodes.append(helper.make_node("Tanh", [x], ["action"]))
    left = [k for k in tensors if not k.startswith("std_layer.")]
    if left:
        sys.exit(f"{folder}: tensor {left[0]} has no place in such an actor")
    value = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "lerobot_sac_actor", [value("obs", width)], [value("action", action_dim)],
                          graph.initializers),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="lerobot_actor.py")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    print(f"{out}: {width} observation entries, {action_dim} actions")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--state-mean")
    parser.add_argument("--state-std")
    parser.add_argument("--raw-state", action="store_true")
    args = parser.parse_args()
    if args.raw_state == bool(args.state_mean and args.state_std):
        parser.error("say how observations were normalised: --state-mean and --state-std, or --raw-state")
    scaling = [] if args.raw_state else [np.load(args.state_mean), np.load(args.state_std)]
    export(args.folder, args.out, *scaling)


if __name__ == "__main__":
    main()
