"""usage: jax_peer.py WORKLOAD RECORD: updates in JAX, one jitted function with donated state, networks by vmap."""
import functools
import math
import sys

import common
import jax
import jax.numpy as jnp
import numpy as np


def network(layers, x):
    for index, (weight, bias, *norm) in enumerate(layers):
        x = x @ weight + bias
        if norm:
            mean = x.mean(-1, keepdims=True)
            variance = jnp.square(x - mean).mean(-1, keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(variance + common.NORM_EPS) * norm[0] + norm[1]
        if index + 1 < len(layers):
            x = jax.nn.relu(x)
    return x


mlp, own_mlp = jax.vmap(network, (0, None)), jax.vmap(network)


def look(layers, image):
    """(n, B, features). The encoders one after the other: vmap groups their convolutions, ten times slower here."""
    *convolutions, (weight, bias) = layers

    def one(member):
        x = image
        for index, (kernel, shift) in enumerate(convolutions):
            order = ("NHWC", "OIHW", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel[member], (1, 1), "SAME", dimension_numbers=order) + shift[member]
            if index + 1 < len(convolutions):
                # The gradient of a maximum by reduce_window is slower on a processor.
                n, height, width, channels = x.shape
                x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
            x = jax.nn.relu(x)
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1)

    return jnp.stack([one(member) for member in range(len(weight))]) @ weight + bias[:, None]


def draw(out, noise):
    mean, log_std = jnp.split(out, 2, -1)
    spread = jnp.exp(jnp.clip(log_std, *common.LOG_STD))
    m = mean.mean(0)
    std = jnp.sqrt(jnp.square(spread).mean(0) + jnp.square(mean - m).mean(0))
    z = m + std * noise
    slope = 2 * (math.log(2) - z - jax.nn.softplus(-2 * z))
    log_prob = (-0.5 * noise ** 2 - 0.5 * math.log(2 * math.pi) - jnp.log(std) - slope).sum(-1)
    return jnp.tanh(z), log_prob


def adam(step, parameters, gradients, m, v):
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    one, two = 1 - 0.9 ** step, 1 - 0.999 ** step
    move = lambda p, m, v: p - common.LEARNING_RATE * (m / one) / (jnp.sqrt(v / two) + common.ADAM_EPS)
    return jax.tree.map(move, parameters, m, v), m, v


def follow(target, critic):
    return jax.tree.map(lambda t, c: (1 - common.TARGET_RATE) * t + common.TARGET_RATE * c, target, critic)


def pair(observation, action):
    return jnp.concatenate([observation, action], -1)


def critic_error(critic, pairs, y):
    return jnp.square(mlp(critic, pairs)[..., 0] - y).mean(1).sum()


@functools.partial(jax.jit, donate_argnums=0)
def off2onrl(state, b):
    (nets, m, v, step), step_now = state, state[3] + 1
    alpha = jnp.exp(nets["temperature"])
    action, log_prob = draw(mlp(nets["actor"], b["next_observation"]), b["next_noise"])
    q = mlp(nets["target"], pair(b["next_observation"], action))[..., 0]
    half = q.shape[0] // 2
    value = jnp.minimum(q[:half], q[half:]) - alpha * log_prob
    y = jax.lax.stop_gradient(b["reward"] + common.DISCOUNT * (1 - b["terminated"]) * value)

    def loss(trained):
        ratio = jax.nn.relu(mlp(trained["density"], jnp.concatenate([b["online"], b["offline"], b["pair"]])))[0, :, 0]
        online, offline, w = jnp.split(ratio, 3)
        density = -(jnp.log(2 / (offline + 1) + common.GUARD)
                    + jnp.log(2 * online / (online + 1) + common.GUARD)).mean()
        critic = critic_error(trained["critic"], b["pair"], jnp.tile(y, (2, 1)))
        action, log_prob = draw(mlp(trained["actor"], b["observation"]), b["noise"])
        q = mlp(nets["critic"], pair(b["observation"], action))[..., 0]
        actor = (alpha * log_prob - jnp.minimum(q[:half], q[half:]).mean(0)).mean()
        temperature = -(trained["temperature"] * (jax.lax.stop_gradient(log_prob).mean() - action.shape[-1]))
        return critic + actor + temperature + density, ((critic, actor, temperature, density), w, offline)

    trained = {name: nets[name] for name in ("actor", "critic", "density", "temperature")}
    (_, (losses, w, offline)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    power = 1 / common.PRIORITY_TEMPERATURE
    priorities = jnp.clip(w ** power / ((offline ** power).mean() + common.GUARD), *common.PRIORITY_RANGE)
    trained, m, v = adam(step_now, trained, gradients, m, v)
    return ({**trained, "target": follow(nets["target"], trained["critic"])}, m, v, step_now), \
        {"losses": losses, "priorities": priorities}


@functools.partial(jax.jit, donate_argnums=0)
def pixels(state, b):
    (nets, m, v, step), step_now = state, state[3] + 1
    alpha, separate, half = jnp.exp(nets["temperature"]), "actor_eyes" in nets, len(nets["critic"][0][0]) // 2
    wide = lambda features, action: pair(*(jnp.broadcast_to(array, (2 * half, *array.shape[-2:]))
                                           for array in (features, action)))
    act = lambda actor, features: own_mlp(actor, features) if separate else mlp(actor, features[0])
    following = look(nets["actor_eyes" if separate else "critic_eyes"], b["next_image"])
    action, log_prob = draw(act(nets["actor"], following), b["next_noise"])
    q = own_mlp(nets["target"], wide(look(nets["target_eyes"], b["next_image"]), action))[..., 0]
    value = jnp.minimum(q[:half], q[half:]) - alpha * log_prob
    y = jax.lax.stop_gradient(b["reward"] + common.DISCOUNT * (1 - b["terminated"]) * value)

    def loss(trained):
        seen = look(trained["critic_eyes"], b["image"])
        q = own_mlp(trained["critic"], wide(seen, b["action"]))[..., 0]
        critic = jnp.square(q - jnp.tile(y, (2, 1))).mean(1).sum()
        fixed = jax.lax.stop_gradient(seen)
        own = look(trained["actor_eyes"], b["image"]) if separate else fixed
        action, log_prob = draw(act(trained["actor"], own), b["noise"])
        q = own_mlp(nets["critic"], wide(fixed, action))[..., 0]
        actor = (alpha * log_prob - jnp.minimum(q[:half], q[half:]).mean(0)).mean()
        temperature = -(trained["temperature"] * (jax.lax.stop_gradient(log_prob).mean() - action.shape[-1]))
        return critic + actor + temperature, (critic, actor, temperature)

    trained = {name: value for name, value in nets.items() if not name.startswith("target")}
    (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    trained, m, v = adam(step_now, trained, gradients, m, v)
    targets = {name: follow(nets[name], trained[name.replace("target", "critic")]) for name in nets if name not in m}
    return ({**trained, **targets}, m, v, step_now), {"losses": losses}


@functools.partial(jax.jit, donate_argnums=0)
def wsrl(state, b):
    nets, m, v, step = state
    alpha = jax.nn.softplus(nets["temperature"])

    def critic_step(carry, batch):
        critic, target, m, v, count = carry
        action, _ = draw(mlp(nets["actor"], batch["next_observation"]), batch["next_noise"])
        chosen = jax.tree.map(lambda array: array[batch["subset"]], target)
        q = mlp(chosen, pair(batch["next_observation"], action))[..., 0].min(0)
        y = batch["reward"] + common.DISCOUNT * (1 - batch["terminated"]) * q
        loss, gradients = jax.value_and_grad(critic_error)(critic, batch["pair"], y)
        critic, m, v = adam(count + 1, critic, gradients, m, v)
        return (critic, follow(target, critic), m, v, count + 1), loss

    carry = (nets["critic"], nets["target"], m["critic"], v["critic"], step * common.CRITIC_STEPS)
    (critic, target, critic_m, critic_v, _), losses = jax.lax.scan(critic_step, carry, b["steps"])
    merge = lambda array: array.reshape(-1, array.shape[-1])
    observation, following = merge(b["steps"]["observation"]), merge(b["steps"]["next_observation"])

    def loss(trained):
        action, log_prob = draw(mlp(trained["actor"], observation), b["noise"])
        actor = (alpha * log_prob - mlp(critic, pair(observation, action))[..., 0].min(0)).mean()
        _, log_prob = draw(mlp(nets["actor"], following), b["temperature_noise"])
        temperature = jax.nn.softplus(trained["temperature"]) * (action.shape[-1] - log_prob.mean())
        return actor + temperature, (actor, temperature)

    trained = {name: nets[name] for name in ("actor", "temperature")}
    (_, (actor, temperature)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    part = lambda tree: {name: tree[name] for name in trained}
    trained, m_new, v_new = adam(step + 1, trained, gradients, part(m), part(v))
    nets = {**trained, "critic": critic, "target": target}
    return (nets, {**m_new, "critic": critic_m}, {**v_new, "critic": critic_v}, step + 1), \
        {"losses": (losses[-1], actor, temperature)}


class Peer:
    def __init__(self, workload):
        self.function = {"off2onrl": off2onrl, "wsrl": wsrl}.get(workload, pixels)

    def load(self, nets):
        # Every network of a stack sees its own bias as a row.
        row = lambda array: array[:, 0] if array.ndim == 3 else array
        narrow = lambda tree: [[layer[0]] + [row(array) for array in layer[1:]] for layer in tree]
        nets = {name: jax.tree.map(jnp.asarray, narrow(tree) if isinstance(tree, list) else tree)
                for name, tree in nets.items()}
        nets["temperature"] = nets["temperature"].reshape(())
        zeros = lambda: jax.tree.map(
            jnp.zeros_like, {name: nets[name] for name in nets if not name.startswith("target")})
        self.state = (nets, zeros(), zeros(), jnp.zeros((), jnp.int32))

    def place(self, batch):
        channels_last = lambda array: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        return jax.tree.map(lambda array: jnp.asarray(channels_last(array)), batch)

    def update(self, b):
        self.state, out = self.function(self.state, b)
        return out

    def networks(self):
        row = lambda weight, array: array[:, None] if weight.ndim == 3 else array
        wide = lambda tree: [[layer[0]] + [row(layer[0], array) for array in layer[1:]] for layer in tree]
        return {name: jax.tree.map(np.asarray, wide(tree) if isinstance(tree, list) else tree)
                for name, tree in self.state[0].items()}

    def number(self, loss):
        return float(loss)

    def finish(self, out):
        jax.block_until_ready((self.state, out))


if __name__ == "__main__":
    common.serve(sys.argv[1], sys.argv[2], Peer(sys.argv[1]))
