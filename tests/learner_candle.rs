//! The learner's updates in candle's own operations with its own autograd, for comparison: what the fused stacks save.
//!
//! `tools/bench/learner_peers` runs it. The losses are the learner's; networks and optimiser are candle's algebra.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and prints what it measured")]

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use fieldtune::clock;
use fieldtune::nn::{LogStdBounds, hold_candle_to_one_thread, tanh_gaussian};
use fieldtune::rl::actor::{self, ActorOperator};
use fieldtune::rl::critic::{self, EntropyTerm, TargetOperator};
use fieldtune::rl::density_ratio::{self, OutputActivation};
use fieldtune::rl::{entropy, state_action};

const O: usize = 17;
const A: usize = 6;
const B: usize = 256;

/// `members` networks: per layer weight, bias and with layer norm scale and shift.
struct Net(Vec<Vec<Var>>);

impl Net {
    fn new(members: usize, widths: [usize; 4], norm: bool) -> Result<Self> {
        let layer = |(index, pair): (usize, &[usize])| {
            let row = (members, 1, pair[1]);
            let bound = 1.0 / (pair[1] as f32).sqrt();
            let mut vars = vec![Var::rand(-bound, bound, (members, pair[0], pair[1]), &Device::Cpu)?];
            vars.push(Var::zeros(row, DType::F32, &Device::Cpu)?);
            if norm && index < 2 {
                vars.push(Var::ones(row, DType::F32, &Device::Cpu)?);
                vars.push(Var::zeros(row, DType::F32, &Device::Cpu)?);
            }
            Ok(vars)
        };
        Ok(Self(widths.windows(2).enumerate().map(layer).collect::<Result<_>>()?))
    }

    fn forward(&self, x: &Tensor, learns: bool) -> Result<Tensor> {
        let mut y = x.unsqueeze(0)?;
        for (index, vars) in self.0.iter().enumerate() {
            let part = |i: usize| if learns { vars[i].as_tensor().clone() } else { vars[i].as_detached_tensor() };
            y = y.broadcast_matmul(&part(0))?.broadcast_add(&part(1))?;
            if vars.len() == 4 {
                let centred = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
                let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
                y = centred.broadcast_div(&std)?.broadcast_mul(&part(2))?.broadcast_add(&part(3))?;
            }
            if index < 2 {
                y = y.relu()?;
            }
        }
        Ok(y)
    }

    fn vars(&self) -> impl Iterator<Item = &Var> {
        self.0.iter().flatten()
    }

    fn follow(&self, online: &Self) -> Result<()> {
        self.vars().zip(online.vars()).try_for_each(|(target, online)| {
            target.set(&((target.as_detached_tensor() * 0.995)? + (online.as_detached_tensor() * 0.005)?)?)
        })
    }
}

/// Adam as candle's own optimiser writes it.
struct Adam(Vec<[Var; 3]>, i32);

impl Adam {
    fn new<'a>(vars: impl Iterator<Item = &'a Var>) -> Result<Self> {
        let zeros = |var: &Var| Var::from_tensor(&var.zeros_like()?);
        Ok(Self(vars.map(|var| Ok([var.clone(), zeros(var)?, zeros(var)?])).collect::<Result<_>>()?, 0))
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        self.1 += 1;
        let (one, two) = (1.0 / (1.0 - 0.9f64.powi(self.1)), 1.0 / (1.0 - 0.999f64.powi(self.1)));
        for [var, m, v] in &self.0 {
            let g = gradients.get(var).unwrap();
            let next_m = ((m.as_detached_tensor() * 0.9)? + (g * 0.1)?)?;
            let next_v = ((v.as_detached_tensor() * 0.999)? + (g.sqr()? * 0.001)?)?;
            let change = ((&next_m * one)? / ((&next_v * two)?.sqrt()? + 1e-8)?)?;
            m.set(&next_m)?;
            v.set(&next_v)?;
            var.set(&(var.as_detached_tensor() - (change * 3e-4)?)?)?;
        }
        Ok(())
    }
}

fn normal(rows: usize, width: usize) -> Tensor {
    Tensor::randn(0f32, 1f32, (rows, width), &Device::Cpu).unwrap()
}

fn sample(out: &Tensor, rows: usize) -> Result<tanh_gaussian::Sample> {
    let (mean, std) = tanh_gaussian::moments(out, LogStdBounds::default())?;
    tanh_gaussian::sample(&mean, &std, &normal(rows, A))
}

fn twins(q: &Tensor) -> Result<(Tensor, Tensor)> {
    let (q, half) = (q.squeeze(2)?, q.dim(0)? / 2);
    Ok((q.narrow(0, 0, half)?, q.narrow(0, half, half)?))
}

/// Actor, critics, targets, optimisers of actor and critics.
type Agents = (Net, Net, Net, Adam, Adam);

fn agents(actors: usize, norm: bool) -> Result<Agents> {
    let actor = Net::new(actors, [O, 256, 256, 2 * A], norm)?;
    let critic = || Net::new(10, [O + A, 256, 256, 1], norm);
    let (critics, targets) = (critic()?, critic()?);
    let steps = (Adam::new(actor.vars())?, Adam::new(critics.vars())?);
    Ok((actor, critics, targets, steps.0, steps.1))
}

fn off2onrl() -> Result<impl FnMut() -> Result<()>> {
    let (actor, critics, targets, mut actor_step, mut critic_step) = agents(5, false)?;
    let density = Net::new(1, [O + A, 256, 256, 1], false)?;
    let log_alpha = Var::new(0f32, &Device::Cpu)?;
    let (mut density_step, mut alpha_step) = (Adam::new(density.vars())?, Adam::new([&log_alpha].into_iter())?);
    let (s, s2, a) = (normal(B, O), normal(B, O), normal(B, A).tanh()?);
    let (reward, terminated) = (normal(B, 1).squeeze(1)?, Tensor::zeros(B, DType::F32, &Device::Cpu)?);
    let sides = normal(2 * B, O + A);
    Ok(move || {
        let alpha = log_alpha.as_detached_tensor().exp()?;
        let x = state_action(&s, &a)?;
        let ratio = |x: &Tensor, learns| {
            density_ratio::ratio(&density.forward(x, learns)?, OutputActivation::Relu)?.flatten_all()
        };
        let (w, rows) = (ratio(&sides, true)?, ratio(&x, false)?);
        density_ratio::priorities(&rows, &w.narrow(0, B, B)?.detach(), 5.0, 1e-3, 1e3)?;
        let density_loss = density_ratio::loss(&w.narrow(0, 0, B)?, &w.narrow(0, B, B)?)?.backward()?;
        let next = sample(&actor.forward(&s2, false)?, B)?;
        let (t1, t2) = twins(&targets.forward(&state_action(&s2, &next.action)?, false)?)?;
        let value = critic::next_value(&t1, &t2, &TargetOperator::OwnTwinMin)?;
        let term = EntropyTerm { temperature: &alpha, next_log_prob: &next.log_prob };
        let y = critic::td_target(&reward, &terminated, &value, Some(term), 0.99)?;
        let (q1, q2) = twins(&critics.forward(&x, true)?)?;
        let critic_loss = critic::loss(&q1, &q2, &y)?.backward()?;
        let now = sample(&actor.forward(&s, true)?, B)?;
        let (p1, p2) = twins(&critics.forward(&state_action(&s, &now.action)?, false)?)?;
        let value = actor::value(&p1, &p2, ActorOperator::MeanOfTwinMin)?;
        let actor_loss = actor::loss(&alpha, &now.log_prob, &value)?.backward()?;
        alpha_step.step(&entropy::loss(&log_alpha, &now.log_prob, -(A as f64))?.backward()?)?;
        actor_step.step(&actor_loss)?;
        critic_step.step(&critic_loss)?;
        density_step.step(&density_loss)?;
        targets.follow(&critics)
    })
}

fn wsrl() -> Result<impl FnMut() -> Result<()>> {
    let (actor, critics, targets, mut actor_step, mut critic_step) = agents(1, true)?;
    let lambda = Var::new(0.5f32, &Device::Cpu)?;
    let mut lambda_step = Adam::new([&lambda].into_iter())?;
    let (s, s2, a) = (normal(4 * B, O), normal(4 * B, O), normal(4 * B, A).tanh()?);
    let (reward, terminated) = (normal(B, 1).squeeze(1)?, Tensor::zeros(B, DType::F32, &Device::Cpu)?);
    Ok(move || {
        for k in 0..4 {
            let rows = |t: &Tensor| t.narrow(0, k * B, B)?.contiguous();
            let next = sample(&actor.forward(&rows(&s2)?, false)?, B)?;
            let (t1, t2) = twins(&targets.forward(&state_action(&rows(&s2)?, &next.action)?, false)?)?;
            let value = critic::next_value(&t1, &t2, &TargetOperator::Redq { indices: vec![2, 7] })?;
            let y = critic::td_target(&reward, &terminated, &value, None, 0.99)?;
            let (q1, q2) = twins(&critics.forward(&state_action(&rows(&s)?, &rows(&a)?)?, true)?)?;
            critic_step.step(&critic::loss(&q1, &q2, &y)?.backward()?)?;
            targets.follow(&critics)?;
        }
        let now = sample(&actor.forward(&s, true)?, 4 * B)?;
        let (p1, p2) = twins(&critics.forward(&state_action(&s, &now.action)?, false)?)?;
        let value = actor::value(&p1, &p2, ActorOperator::Min)?;
        let actor_loss = actor::loss(&lambda.as_detached_tensor().exp()?, &now.log_prob, &value)?.backward()?;
        let next = sample(&actor.forward(&s2, false)?, 4 * B)?;
        lambda_step.step(&entropy::softplus_loss(&lambda, &next.log_prob, -(A as f64))?.backward()?)?;
        actor_step.step(&actor_loss)
    })
}

fn time(name: &str, mut update: impl FnMut() -> Result<()>) {
    let mut times: Vec<f64> = (0..12)
        .map(|_| {
            let start = clock::process_cpu();
            update().unwrap();
            clock::process_cpu().saturating_sub(start).as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("candle {name} {:.1} ms", times[6]);
}

#[test]
#[ignore = "timing: part of tools/bench/learner_peers"]
fn stock_candle() {
    hold_candle_to_one_thread();
    fieldtune::runtime::tune_allocator();
    time("off2onrl", off2onrl().unwrap());
    time("wsrl", wsrl().unwrap());
}

#[test]
fn the_comparison_learns() {
    let mut update = off2onrl().unwrap();
    update().unwrap();
    wsrl().unwrap()().unwrap();
}
