#!/usr/bin/env python3
"""A checkpoint as WSRL writes it, made by flax and Orbax themselves, through tools/orbax_to_weights.py and
`fieldtune policy import`: actions and critic values must be those of the flax networks within 1e-5.

usage: wsrl_checkpoint.py [--program target/release/fieldtune] [--work runs/interop/wsrl]
                          [--fixtures tests/data/import]
Needs: numpy safetensors flax orbax-checkpoint.
"""
import argparse, os, shutil, subprocess, sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.training import checkpoints

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from checkpoints import act, robot, run, safetensors_critic

OBSERVATION, ACTION, WIDTH, CRITICS = 6, 2, 8, 10


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(WIDTH)(x)))
        return x


class Actor(nn.Module):
    network: nn.Module

    @nn.compact
    def __call__(self, observations):
        x = self.network(observations)
        return nn.Dense(ACTION)(x), nn.Dense(ACTION)(x)


class Critic(nn.Module):
    """Only the body of each critic is its own, as in WSRL and SERL."""
    network: nn.Module

    @nn.compact
    def __call__(self, observations, actions):
        x = self.network(jnp.concatenate([observations, actions], -1))
        return nn.Dense(1)(x)[..., 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/fieldtune")
    parser.add_argument("--work", default="runs/interop/wsrl")
    parser.add_argument("--fixtures", help="folder for the tiny files that the Rust tests read")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    os.makedirs(args.work)
    many = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=CRITICS)
    actor, critic = Actor(Mlp()), Critic(many())
    keys = jax.random.split(jax.random.PRNGKey(0), 6)
    observations, actions = jax.random.normal(keys[0], (1000, OBSERVATION)), jax.random.uniform(keys[1], (1000, ACTION))
    # Away from the beginning: there every norm has scale 1 and every bias is 0.
    shake = lambda tree, key: jax.tree_util.tree_map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), tree)
    actor_params = shake(actor.init(keys[2], observations)["params"], keys[2])
    params, targets = (shake(critic.init(k, observations, actions)["params"], k) for k in keys[3:5])
    tree = {"step": 7, "params": {"modules_actor": actor_params, "modules_critic": params,
                                  "modules_temperature": {"lagrange": jnp.float32(-0.7)}},
            "target_params": {"modules_actor": actor_params, "modules_critic": targets,
                              "modules_temperature": {"lagrange": jnp.float32(-0.7)}},
            "opt_states": {"actor": {"mu": actor_params}}, "rng": jax.random.PRNGKey(1)}
    folder = os.path.abspath(os.path.join(args.work, "checkpoints"))
    checkpoints.save_checkpoint(folder, tree, step=7)
    weights, bundle = os.path.join(args.work, "agent.safetensors"), os.path.join(args.work, "bundle")
    tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "orbax_to_weights.py")
    subprocess.run([sys.executable, tool, os.path.join(folder, "checkpoint_7"), weights, "--relu"], check=True)
    print(run(args, args.program, "policy", "import", weights, "--config", robot(args, OBSERVATION, ACTION),
              "--out", bundle, "--raw-state"))
    expected = np.asarray(jnp.tanh(actor.apply({"params": actor_params}, observations)[0]))
    rows = [("actions", expected, act(args, bundle, np.asarray(observations)))]
    inputs = np.concatenate([observations, actions], 1)
    for tree, names in ((params, ("critic1", "critic2")), (targets, ("target1", "target2"))):
        values = np.asarray(critic.apply({"params": tree}, observations, actions))
        for k, name in enumerate(names):
            rows.append((f"{name} of all members", values[k::2],
                         np.stack([safetensors_critic(bundle, name, inputs, m) for m in range(CRITICS // 2)])))
    if args.fixtures:
        shutil.copy(weights, os.path.join(args.fixtures, "wsrl.safetensors"))
        for what, values in (("observations", observations), ("actions", expected)):
            np.save(os.path.join(args.fixtures, f"wsrl_safetensors_{what}.npy"), np.asarray(values[:16]))
    worst = 0
    for name, expected, got in rows:
        difference = float(np.abs(expected - got).max())
        worst = max(worst, difference)
        print(f"{name:<24} {expected.size:>6} numbers, largest difference {difference:.2e}")
    return int(not worst <= 1e-5)


if __name__ == "__main__":
    sys.exit(main())
