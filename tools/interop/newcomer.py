#!/usr/bin/env python3
"""What a newcomer brings: an agent that d3rlpy trained, and its data in the layout of D4RL. Makes the two tiny files that
tests/newcomer.rs runs the README's commands on.

usage: newcomer.py [--data models/pendulum-offline.npz] [--out tests/data/newcomer]
Needs: numpy h5py d3rlpy 2.8.1 (docs/importing.md).
"""
import argparse, os

import d3rlpy
import h5py
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="models/pendulum-offline.npz")
    parser.add_argument("--out", default="tests/data/newcomer")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    d3rlpy.seed(1)
    data = np.load(args.data)
    rows = slice(0, data["episode_ends"][1])
    columns = {k: data[k][rows] for k in ("observations", "actions", "rewards", "terminals", "timeouts")}
    with h5py.File(os.path.join(args.out, "set.hdf5"), "w") as f:
        for name, values in columns.items():
            f.create_dataset(name, data=values, compression="gzip")
    dataset = d3rlpy.dataset.MDPDataset(
        columns["observations"], columns["actions"].reshape(-1, 1), columns["rewards"],
        columns["terminals"].astype(np.float32), timeouts=columns["timeouts"].astype(np.float32))
    encoder = d3rlpy.models.VectorEncoderFactory([16, 16])
    agent = d3rlpy.algos.CQLConfig(
        actor_encoder_factory=encoder, critic_encoder_factory=encoder, batch_size=32,
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler()).create(device="cpu:0")
    agent.fit(dataset, n_steps=40, n_steps_per_epoch=40, show_progress=False,
              logger_adapter=d3rlpy.logging.NoopAdapterFactory())
    agent.save(os.path.join(args.out, "agent.d3"))


if __name__ == "__main__":
    main()
