#!/usr/bin/env python3
"""The five agents that the authors of Off2OnRL published, through `fieldtune policy import` and `fieldtune policy act`,
against numbers that PyTorch gave for them: at the observation linspace(-1, 1, 17) the ensemble's mean before tanh, and
the smaller critic of each member at action 0.

usage: published_agents.py FOLDER [--program target/release/fieldtune] [--work runs/interop/published]
FOLDER holds seed{0,4,8,12,16}/{actor,critic1,critic2}.pt of halfcheetah-medium-v0 (repository shlee94/Off2OnRL).
Needs: numpy safetensors onnx onnxruntime.
"""
import argparse, os, shutil, sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoints

MEAN = [1.835837, 1.625144, 1.397312, 0.098222, -1.514471, -1.831104]
SMALLER_Q = [-461.5489, -287.2976, -342.6763, -307.4552, -406.4464]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--program", default="target/release/fieldtune")
    parser.add_argument("--work", default="runs/interop/published")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    bundle = os.path.join(args.work, "bundle")
    shutil.rmtree(bundle, ignore_errors=True)
    print(checkpoints.run(args, args.program, "policy", "import", args.folder, "--config",
                          checkpoints.robot(args, 17, 6), "--out", bundle))
    observations = np.linspace(-1, 1, 17, dtype=np.float32)[None]
    actions = checkpoints.act(args, bundle, observations)
    checkpoints.compare("action", "PyTorch", np.tanh([MEAN]), actions, 1e-5)
    inputs = np.concatenate([observations, np.zeros((1, 6), np.float32)], 1)
    smaller = [min(checkpoints.safetensors_critic(bundle, f"critic{k}", inputs, member)[0] for k in (1, 2))
               for member in range(5)]
    scale = np.abs(SMALLER_Q)
    checkpoints.compare("smaller critic, relative", "PyTorch", SMALLER_Q / scale, smaller / scale, 1e-5)
    checkpoints.exported(args, "published", bundle, observations, actions)
    return checkpoints.print_table()


if __name__ == "__main__":
    sys.exit(main())
