"""usage: torch_peer.py WORKLOAD RECORD [compile] [medium]: updates in PyTorch, all networks of a kind as one stack."""
import math
import sys

import common
import torch
from torch.nn import functional as F

torch.set_num_threads(1)


def mlp(layers, x):
    if x.dim() == 2:
        x = x.expand(layers[0][0].shape[0], *x.shape)
    for index, (weight, bias, *norm) in enumerate(layers):
        x = torch.baddbmm(bias, x, weight)
        if norm:
            x = torch.addcmul(norm[1], F.layer_norm(x, x.shape[-1:], eps=common.NORM_EPS), norm[0])
        if index + 1 < len(layers):
            x = F.relu(x)
    return x


def look(layers, image):
    """(n, B, features). The encoders one after the other: grouped convolutions are slower on a processor."""
    *convolutions, (weight, bias) = layers

    def one(member):
        x = image
        for index, (kernel, shift) in enumerate(convolutions):
            x = F.conv2d(x, kernel[member], shift[member], padding=1)
            x = F.relu(F.max_pool2d(x, 2) if index + 1 < len(convolutions) else x)
        return x.flatten(1)

    return torch.baddbmm(bias, torch.stack([one(member) for member in range(len(weight))]), weight)


def fixed(layers):
    return [[array.detach() for array in layer] for layer in layers]


def draw(out, noise):
    mean, log_std = out.chunk(2, -1)
    spread = log_std.clamp(*common.LOG_STD).exp()
    m = mean.mean(0)
    std = (spread.square().mean(0) + (mean - m).square().mean(0)).sqrt()
    z = m + std * noise
    slope = 2 * (math.log(2) - z - F.softplus(-2 * z))
    log_prob = (-0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - std.log() - slope).sum(-1)
    return z.tanh(), log_prob


def off2onrl(nets, b):
    alpha = nets["temperature"].detach().exp()
    with torch.no_grad():
        action, log_prob = draw(mlp(nets["actor"], b["next_observation"]), b["next_noise"])
        q = mlp(nets["target"], torch.cat([b["next_observation"], action], -1)).squeeze(-1)
        value = torch.minimum(*q.chunk(2)) - alpha * log_prob
        y = b["reward"] + common.DISCOUNT * (1 - b["terminated"]) * value
        w = F.relu(mlp(nets["density"], b["pair"])).flatten()
    ratio = F.relu(mlp(nets["density"], torch.cat([b["online"], b["offline"]]))).flatten()
    online, offline = ratio.chunk(2)
    density = -((2 / (offline + 1) + common.GUARD).log() + (2 * online / (online + 1) + common.GUARD).log()).mean()
    power = 1 / common.PRIORITY_TEMPERATURE
    priorities = w.pow(power) / (offline.detach().pow(power).mean() + common.GUARD)
    q = mlp(nets["critic"], b["pair"]).squeeze(-1)
    critic = (q - y.repeat(2, 1)).square().mean(1).sum()
    action, log_prob = draw(mlp(nets["actor"], b["observation"]), b["noise"])
    q = mlp(fixed(nets["critic"]), torch.cat([b["observation"], action], -1)).squeeze(-1)
    actor = (alpha * log_prob - torch.minimum(*q.chunk(2)).mean(0)).mean()
    temperature = -(nets["temperature"] * (log_prob.detach().mean() - action.shape[-1]))
    return critic + actor + temperature + density, (critic, actor, temperature, density), \
        priorities.clamp(*common.PRIORITY_RANGE)


def pixels(nets, b):
    alpha = nets["temperature"].detach().exp()
    separate = "actor_eyes" in nets
    beside = lambda features, action: torch.cat([features, action.expand(len(features), -1, -1)], -1)
    with torch.no_grad():
        following = look(nets["actor_eyes" if separate else "critic_eyes"], b["next_image"])
        action, log_prob = draw(mlp(nets["actor"], following.squeeze(0)), b["next_noise"])
        q = mlp(nets["target"], wide(nets["target"], beside(look(nets["target_eyes"], b["next_image"]), action)))
        value = torch.minimum(*q.squeeze(-1).chunk(2)) - alpha * log_prob
        y = b["reward"] + common.DISCOUNT * (1 - b["terminated"]) * value
    seen = look(nets["critic_eyes"], b["image"])
    q = mlp(nets["critic"], wide(nets["critic"], beside(seen, b["action"]))).squeeze(-1)
    critic = (q - y.repeat(2, 1)).square().mean(1).sum()
    own = look(nets["actor_eyes"], b["image"]) if separate else seen.detach().squeeze(0)
    action, log_prob = draw(mlp(nets["actor"], own), b["noise"])
    q = mlp(fixed(nets["critic"]), wide(nets["critic"], beside(seen.detach(), action))).squeeze(-1)
    actor = (alpha * log_prob - torch.minimum(*q.chunk(2)).mean(0)).mean()
    temperature = -(nets["temperature"] * (log_prob.detach().mean() - action.shape[-1]))
    return critic + actor + temperature, (critic, actor, temperature)


def wide(layers, x):
    return x.expand(len(layers[0][0]), -1, -1)


def critic_loss(nets, b):
    with torch.no_grad():
        action, _ = draw(mlp(nets["actor"], b["next_observation"]), b["next_noise"])
        chosen = [[array[b["subset"]] for array in layer] for layer in nets["target"]]
        q = mlp(chosen, torch.cat([b["next_observation"], action], -1)).squeeze(-1)
        y = b["reward"] + common.DISCOUNT * (1 - b["terminated"]) * q.amin(0)
    q = mlp(nets["critic"], b["pair"]).squeeze(-1)
    return (q - y).square().mean(1).sum()


def actor_loss(nets, b):
    alpha = F.softplus(nets["temperature"]).detach()
    observation, following = (b["steps"][name].flatten(0, 1) for name in ("observation", "next_observation"))
    action, log_prob = draw(mlp(nets["actor"], observation), b["noise"])
    q = mlp(fixed(nets["critic"]), torch.cat([observation, action], -1)).squeeze(-1)
    actor = (alpha * log_prob - q.amin(0)).mean()
    with torch.no_grad():
        _, log_prob = draw(mlp(nets["actor"], following), b["temperature_noise"])
    temperature = F.softplus(nets["temperature"]) * (action.shape[-1] - log_prob.mean())
    return actor + temperature, (actor, temperature)


class Peer:
    def __init__(self, workload, compiled):
        self.workload = workload
        wrap = torch.compile if compiled else lambda f: f
        losses = pixels if workload in common.EYES else off2onrl
        self.losses, self.critic_loss, self.actor_loss = wrap(losses), wrap(critic_loss), wrap(actor_loss)

    def load(self, nets):
        self.nets = {name: [[torch.from_numpy(a) for a in layer] for layer in tree] if isinstance(tree, list)
                     else torch.tensor(float(tree)) for name, tree in nets.items()}
        parameters = {name: common.flat({name: tree}) for name, tree in self.nets.items()}
        take = lambda name, of: [array for part in (name, name + "_eyes") for array in of(part, [])]
        self.targets, self.critics = take("target", parameters.pop), take("critic", parameters.get)
        for arrays in parameters.values():
            for array in arrays:
                array.requires_grad_()
        adam = lambda arrays: torch.optim.Adam(arrays, lr=common.LEARNING_RATE, fused=True)
        self.adam = {name: adam(arrays) for name, arrays in parameters.items()}

    def place(self, batch):
        tensor = lambda array: torch.from_numpy(array).contiguous(
            memory_format=torch.channels_last if array.ndim == 4 else torch.contiguous_format)
        return {name: self.place(value) if isinstance(value, dict) else tensor(value) for name, value in batch.items()}

    def step(self, loss, names):
        for name in names:
            self.adam[name].zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self.adam[name].step()

    def update(self, b):
        if self.workload != "wsrl":
            loss, losses, *priorities = self.losses(self.nets, b)
            self.step(loss, self.adam)
            self.follow()
            return {"losses": losses, **({"priorities": priorities[0]} if priorities else {})}
        for step in range(common.CRITIC_STEPS):
            critic = self.critic_loss(self.nets, {name: value[step] for name, value in b["steps"].items()})
            self.step(critic, ("critic",))
            self.follow()
        loss, (actor, temperature) = self.actor_loss(self.nets, b)
        self.step(loss, ("actor", "temperature"))
        return {"losses": (critic, actor, temperature)}

    @torch.no_grad()
    def follow(self):
        torch._foreach_lerp_(self.targets, self.critics, common.TARGET_RATE)

    def networks(self):
        return {name: [[a.detach().numpy() for a in layer] for layer in tree] if isinstance(tree, list)
                else tree.detach().numpy() for name, tree in self.nets.items()}

    def number(self, loss):
        return loss.item()

    def finish(self, out):
        pass


if __name__ == "__main__":
    if "medium" in sys.argv:
        torch.set_float32_matmul_precision("medium")
    common.serve(sys.argv[1], sys.argv[2], Peer(sys.argv[1], "compile" in sys.argv))
