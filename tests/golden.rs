//! The losses, policies and optimiser of the program against reference numbers computed in float64 elsewhere.
//!
//! Every file of the golden folder is run through the production functions in f32 on the processor. A file of an
//! unknown kind or schema fails the test; kinds that the program does not have yet are listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use fieldtune::nn::tanh_gaussian::{self, Sample, log_prob_of, member_moments, moments, sample};
use fieldtune::nn::{Adam, AdamSettings, LayerWeights, LogStdBounds, Stack, StackWeights, polyak};
use fieldtune::rl::actor::{self, ActorOperator};
use fieldtune::rl::critic::{self, EntropyTerm, SampledBackup, TargetOperator};
use fieldtune::rl::density_ratio::{self, OutputActivation};
use fieldtune::rl::{cql, entropy, state_action};
use safetensors::{Dtype, SafeTensors};

/// Relative tolerance of f32 on the processor, as stated beside the golden files.
const TOLERANCE: f64 = 1e-5;

type Run = fn(&mut Case) -> Result<()>;

/// What each kind runs; `None`: the program does not have it yet.
const KINDS: [(&str, Option<Run>); 10] = [
    ("ensemble_policy", Some(ensemble_policy)),
    ("sac_update", Some(sac_update)),
    ("wsrl_temperature", Some(wsrl_temperature)),
    ("cql_critic", Some(cql_critic)),
    ("calql_critic", Some(cql_critic)),
    ("density_ratio", Some(density_ratio)),
    ("adam_polyak", Some(adam_polyak)),
    ("awac_actor", Some(awac_actor)),
    ("bc_actor", Some(bc_actor)),
    ("conv_encoder", None),
];

fn shared(name: &str) -> Option<PathBuf> {
    let beside = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).to_path_buf();
    let roots = std::env::var_os("FIELDTUNE_SHARED").map(PathBuf::from).into_iter().chain([beside]);
    roots.map(|root| root.join(name)).find(|path| path.exists())
}

#[test]
fn every_golden_file_agrees() {
    let Some(folder) = shared("golden") else {
        eprintln!("skipped: no golden folder in $FIELDTUNE_SHARED or ../shared");
        return;
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    assert!(!files.is_empty(), "{} holds no golden file", folder.display());
    let (mut failures, mut compared) = (Vec::new(), 0);
    for path in &files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match run(path) {
            Ok(Some(report)) => {
                compared += 1;
                eprintln!("{name}: {report}");
            }
            Ok(None) => eprintln!("{name}: not covered yet"),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    eprintln!("{compared} of {} golden files compared", files.len());
    assert!(failures.is_empty(), "{} golden files disagree:\n{}", failures.len(), failures.join("\n"));
}

/// Runs one file; `None` for a kind that is not covered yet.
fn run(path: &Path) -> Result<Option<String>> {
    let mut case = Case::open(path)?;
    ensure!(case.text("schema")? == "1", "unknown schema {}", case.text("schema")?);
    let kind = case.text("kind")?.to_owned();
    let Some((_, run)) = KINDS.iter().find(|(name, _)| *name == kind) else { bail!("unknown kind {kind}") };
    let Some(run) = run else { return Ok(None) };
    run(&mut case)?;
    case.finish().map(Some)
}

/// One golden file and what was compared with it so far.
struct Case {
    settings: BTreeMap<String, String>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    open: BTreeSet<String>,
    worst: (f64, String),
    wrong: Vec<String>,
}

impl Case {
    fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let settings = header.metadata().clone().context("no metadata")?.into_iter().collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let data = view.data();
            let numbers = match view.dtype() {
                Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
                Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
                other => bail!("{name} has dtype {other:?}"),
            };
            tensors.insert(name.clone(), (view.shape().to_vec(), numbers));
        }
        let open = tensors.keys().filter(|n| n.starts_with("out.") || n.starts_with("grad.")).cloned().collect();
        Ok(Self { settings, tensors, open, worst: (0.0, String::new()), wrong: Vec::new() })
    }

    fn text(&self, key: &str) -> Result<&str> {
        self.settings.get(key).map(String::as_str).with_context(|| format!("no setting {key}"))
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.text(key)?.parse().with_context(|| format!("setting {key}"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.text(key)?.parse().with_context(|| format!("setting {key}"))
    }

    fn bounds(&self) -> Result<LogStdBounds> {
        Ok(LogStdBounds { min: self.number("log_std_min")? as f32, max: self.number("log_std_max")? as f32 })
    }

    fn input(&self, name: &str) -> Result<Tensor> {
        let (shape, numbers) = self.raw(&format!("in.{name}"))?;
        let numbers: Vec<f32> = numbers.iter().map(|v| *v as f32).collect();
        Ok(Tensor::from_vec(numbers, shape.as_slice(), &Device::Cpu)?)
    }

    fn variable(&self, name: &str) -> Result<Var> {
        Ok(Var::from_tensor(&self.input(name)?)?)
    }

    fn raw(&self, name: &str) -> Result<&(Vec<usize>, Vec<f64>)> {
        self.tensors.get(name).with_context(|| format!("no tensor {name}"))
    }

    fn stack(&self, net: &str) -> Result<Stack> {
        let numbers = |name: String| -> Result<Vec<f32>> { Ok(self.raw(&name)?.1.iter().map(|v| *v as f32).collect()) };
        let (mut layers, mut members) = (Vec::new(), 0);
        while let Ok((shape, _)) = self.raw(&format!("in.{net}.w{}", layers.len())) {
            let (l, &[n, inputs, outputs]) = (layers.len(), &shape[..]) else { bail!("{net} has shape {shape:?}") };
            members = n;
            let norm = self.tensors.contains_key(&format!("in.{net}.ln_scale{l}"));
            let norm = norm.then(|| -> Result<_> {
                Ok((numbers(format!("in.{net}.ln_scale{l}"))?, numbers(format!("in.{net}.ln_bias{l}"))?))
            });
            layers.push(LayerWeights {
                inputs,
                outputs,
                weight: numbers(format!("in.{net}.w{l}"))?,
                bias: numbers(format!("in.{net}.b{l}"))?,
                layer_norm: norm.transpose()?,
            });
        }
        Ok(Stack::from_weights(&StackWeights { members, layers }, &Device::Cpu)?)
    }

    /// Compares a tensor with `out.NAME`.
    fn value(&mut self, name: &str, got: &Tensor) -> Result<()> {
        let shape = got.dims().to_vec();
        let got = got.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.compare(&format!("out.{name}"), Some(&shape), &got)
    }

    /// Compares one variable's gradient with `grad.NAME`.
    fn gradient(&mut self, name: &str, of: &Var, gradients: &GradStore) -> Result<()> {
        let got = gradients.get(of).with_context(|| format!("{name} has no gradient"))?;
        let numbers = got.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.compare(&format!("grad.{name}"), Some(got.dims()), &numbers)
    }

    /// Compares all gradients of a stack with `grad.NET.*`.
    fn gradients(&mut self, net: &str, stack: &Stack, gradients: &GradStore) -> Result<()> {
        for (l, layer) in stack.gradient_weights(gradients)?.layers.iter().enumerate() {
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            self.compare(&format!("grad.{net}.w{l}"), None, &wide(&layer.weight))?;
            self.compare(&format!("grad.{net}.b{l}"), None, &wide(&layer.bias))?;
            if let Some((scale, shift)) = &layer.layer_norm {
                self.compare(&format!("grad.{net}.ln_scale{l}"), None, &wide(scale))?;
                self.compare(&format!("grad.{net}.ln_bias{l}"), None, &wide(shift))?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, name: &str, shape: Option<&[usize]>, got: &[f64]) -> Result<()> {
        let (want_shape, want) = self.raw(name)?.clone();
        ensure!(shape.is_none_or(|s| s == want_shape), "{name} has shape {shape:?}, want {want_shape:?}");
        ensure!(got.len() == want.len(), "{name} has {} numbers, want {}", got.len(), want.len());
        self.open.remove(name);
        let largest = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let floor = if name.starts_with("out.v.") { 0.0 } else { 0.1 * TOLERANCE * largest };
        let share = |(g, w): (&f64, &f64)| {
            let allowed = TOLERANCE * w.abs() + floor;
            if g == w {
                0.0
            } else if allowed > 0.0 {
                (g - w).abs() / allowed
            } else {
                f64::INFINITY
            }
        };
        let worst =
            got.iter().zip(&want).map(share).fold(0.0f64, |m, s| if s.is_nan() { f64::INFINITY } else { m.max(s) });
        if worst > self.worst.0 {
            self.worst = (worst, name.to_owned());
        }
        if worst > 1.0 {
            self.wrong.push(format!("{name} ({worst:.3e} of the tolerance)"));
        }
        Ok(())
    }

    fn finish(self) -> Result<String> {
        ensure!(self.open.is_empty(), "never compared: {:?}", self.open);
        ensure!(self.wrong.is_empty(), "{}", self.wrong.join(", "));
        Ok(format!("worst {:.2} of the tolerance ({})", self.worst.0, self.worst.1))
    }
}

fn squeeze(q: &Tensor) -> Result<Tensor> {
    Ok(q.squeeze(2)?)
}

fn ensemble_policy(case: &mut Case) -> Result<()> {
    let (mean, log_std) = (case.variable("mean")?, case.variable("log_std")?);
    let actor_out = Tensor::cat(&[mean.as_tensor(), log_std.as_tensor()], 2)?;
    let (m, std) = moments(&actor_out, case.bounds()?)?;
    let drawn = sample(&m, &std, &case.input("noise")?)?;
    let scalar = (drawn.log_prob.sum_all()? + drawn.action.sum_all()?)?;
    let gradients = scalar.backward()?;
    case.value("mean", &m)?;
    case.value("std", &std)?;
    case.value("pre_tanh", &drawn.pre_tanh)?;
    case.value("action", &drawn.action)?;
    case.value("deterministic_action", &m.tanh()?)?;
    case.value("log_prob", &drawn.log_prob)?;
    case.value("scalar", &scalar)?;
    case.gradient("mean", &mean, &gradients)?;
    case.gradient("log_std", &log_std, &gradients)
}

fn target_operator(case: &Case) -> Result<TargetOperator> {
    Ok(match case.text("target_operator")? {
        "own_twin_min" => TargetOperator::OwnTwinMin,
        "ensemble_min" => TargetOperator::EnsembleMin,
        "redq" => TargetOperator::Redq { indices: case.raw("in.redq_indices")?.1.iter().map(|v| *v as u32).collect() },
        other => bail!("unknown target operator {other}"),
    })
}

fn actor_operator(case: &Case) -> Result<ActorOperator> {
    Ok(match case.text("actor_operator")? {
        "mean_of_twin_min" => ActorOperator::MeanOfTwinMin,
        "min" => ActorOperator::Min,
        "mean" => ActorOperator::Mean,
        other => bail!("unknown actor operator {other}"),
    })
}

fn sac_update(case: &mut Case) -> Result<()> {
    let [critic1, critic2, target1, target2, actor] =
        ["critic1", "critic2", "target1", "target2", "actor"].map(|net| case.stack(net));
    let (critic1, critic2, target1, target2, actor) = (critic1?, critic2?, target1?, target2?, actor?);
    let (s, s2, a) = (case.input("observation")?, case.input("next_observation")?, case.input("action")?);
    let log_alpha = case.variable("log_alpha")?;
    let alpha = log_alpha.as_detached_tensor().exp()?;
    let act = |out: &Tensor, noise: &str| -> Result<Sample> {
        let (mean, std) = moments(out, case.bounds()?)?;
        Ok(sample(&mean, &std, &case.input(noise)?)?)
    };
    let next = act(&actor.forward_detached(&s2)?, "next_noise")?;
    let now = act(&actor.forward(&s)?, "noise")?;

    let x2 = state_action(&s2, &next.action)?;
    let (t1, t2) = (squeeze(&target1.forward_detached(&x2)?)?, squeeze(&target2.forward_detached(&x2)?)?);
    let value = critic::next_value(&t1, &t2, &target_operator(case)?)?;
    let term = EntropyTerm { temperature: &alpha, next_log_prob: &next.log_prob };
    let term = case.flag("entropy_backup")?.then_some(term);
    let (reward, terminated) = (case.input("reward")?, case.input("terminated")?);
    let target = critic::td_target(&reward, &terminated, &value, term, case.number("gamma")?)?;

    let x = state_action(&s, &a)?;
    let (q1, q2) = (squeeze(&critic1.forward(&x)?)?, squeeze(&critic2.forward(&x)?)?);
    let critic_loss = critic::loss(&q1, &q2, &target)?;
    let critic_gradients = critic_loss.backward()?;

    let xp = state_action(&s, &now.action)?;
    let (p1, p2) = (squeeze(&critic1.forward_frozen(&xp)?)?, squeeze(&critic2.forward_frozen(&xp)?)?);
    let actor_q = actor::value(&p1, &p2, actor_operator(case)?)?;
    let actor_loss = actor::loss(&alpha, &now.log_prob, &actor_q)?;
    let actor_gradients = actor_loss.backward()?;
    ensure!(actor_gradients.get(&critic1.vars()[0]).is_none(), "the actor loss reached a critic");

    let temperature_loss = entropy::loss(&log_alpha, &now.log_prob, case.number("target_entropy")?)?;
    let temperature_gradients = temperature_loss.backward()?;

    case.value("next_action", &next.action)?;
    case.value("action", &now.action)?;
    case.value("next_log_prob", &next.log_prob)?;
    case.value("log_prob", &now.log_prob)?;
    case.value("target", &target)?;
    case.value("q1", &q1)?;
    case.value("q2", &q2)?;
    case.value("actor_q", &actor_q)?;
    case.value("critic_loss", &critic_loss)?;
    case.value("actor_loss", &actor_loss)?;
    case.value("entropy_temperature_loss", &temperature_loss)?;
    case.gradients("critic1", &critic1, &critic_gradients)?;
    case.gradients("critic2", &critic2, &critic_gradients)?;
    case.gradients("actor", &actor, &actor_gradients)?;
    case.gradient("log_alpha", &log_alpha, &temperature_gradients)
}

fn wsrl_temperature(case: &mut Case) -> Result<()> {
    let lambda = case.variable("lambda")?;
    let out = case.stack("actor")?.forward_detached(&case.input("next_observation")?)?;
    let (mean, std) = moments(&out, case.bounds()?)?;
    let next = sample(&mean, &std, &case.input("next_noise")?)?;
    let loss = entropy::softplus_loss(&lambda, &next.log_prob, case.number("target_entropy")?)?;
    let gradients = loss.backward()?;
    case.value("next_log_prob", &next.log_prob)?;
    case.value("entropy", &next.log_prob.mean_all()?.neg()?)?;
    case.value("temperature", &fieldtune::nn::pointwise::softplus(&lambda)?)?;
    case.value("entropy_temperature_loss", &loss)?;
    case.gradient("lambda", &lambda, &gradients)
}

/// Samples `(P, n, B, A)` of the members' own policies or of the ensemble, for noise of that shape.
fn draw(case: &Case, actor_out: &Tensor, noise: &str) -> Result<Sample> {
    let (mean, std) = match case.text("policy")? {
        "member" => member_moments(actor_out, case.bounds()?)?,
        "ensemble" => {
            let (mean, std) = moments(actor_out, case.bounds()?)?;
            (mean.unsqueeze(0)?, std.unsqueeze(0)?)
        }
        other => bail!("unknown policy {other}"),
    };
    Ok(sample(&mean.unsqueeze(1)?, &std.unsqueeze(1)?, &case.input(noise)?)?)
}

/// `(members, samples, batch)` values of a stack at sampled actions of the given states.
fn judge(stack: &Stack, s: &Tensor, action: &Tensor, detached: bool) -> Result<Tensor> {
    let dims = action.dims();
    let (samples, batch) = (dims[dims.len() - 3], dims[dims.len() - 2]);
    let x = state_action(s, action)?;
    let q = if detached { stack.forward_detached(&x)? } else { stack.forward(&x)? };
    Ok(q.reshape((stack.members(), samples, batch))?)
}

fn cql_critic(case: &mut Case) -> Result<()> {
    let (actor, target1, target2) = (case.stack("actor")?, case.stack("target1")?, case.stack("target2")?);
    let critics = [case.stack("critic1")?, case.stack("critic2")?];
    let (s, s2) = (case.input("observation")?, case.input("next_observation")?);
    let (out, out2) = (actor.forward_detached(&s)?, actor.forward_detached(&s2)?);
    let (now, cql_next) = (draw(case, &out, "noise")?, draw(case, &out2, "cql_next_noise")?);
    let backup = draw(case, &out2, "next_noise")?;
    let uniform = case.input("uniform_action")?.unsqueeze(0)?;

    let (t1, t2) = (judge(&target1, &s2, &backup.action, true)?, judge(&target2, &s2, &backup.action, true)?);
    let value = match case.text("backup")? {
        "none" => critic::next_value(&t1.squeeze(1)?, &t2.squeeze(1)?, &TargetOperator::OwnTwinMin)?,
        "max_then_min" => critic::sampled_next_value(&t1, &t2, SampledBackup::MaxThenMin)?,
        "min_then_max" => critic::sampled_next_value(&t1, &t2, SampledBackup::MinThenMax)?,
        other => bail!("unknown backup {other}"),
    };
    let alpha = case.input("log_alpha")?.exp()?;
    let backup_log_prob = backup.log_prob.narrow(1, 0, 1)?.squeeze(1)?;
    let term = EntropyTerm { temperature: &alpha, next_log_prob: &backup_log_prob };
    let term = case.flag("entropy_backup")?.then_some(term);
    let (reward, terminated) = (case.input("reward")?, case.input("terminated")?);
    let target = critic::td_target(&reward, &terminated, &value, term, case.number("gamma")?)?;

    let settings = cql::Settings {
        form: match case.text("form")? {
            "h" => cql::Form::H,
            "rho" => cql::Form::Rho,
            other => bail!("unknown form {other}"),
        },
        temperature: case.number("cql_temperature")?,
        weight: case.number("cql_weight")?,
        action_dim: case.number("act_dim")? as usize,
    };
    let x = state_action(&s, &case.input("action")?)?;
    let bound = (case.text("kind")? == "calql_critic").then(|| case.input("mc_return")).transpose()?;
    let (mut penalties, mut errors) = (Vec::new(), Vec::new());
    for (j, critic) in critics.iter().enumerate() {
        let q = squeeze(&critic.forward(&x)?)?;
        let values = cql::SampledValues {
            uniform: &judge(critic, &s, &uniform, false)?,
            policy: &judge(critic, &s, &now.action, false)?,
            policy_log_prob: &now.log_prob,
            next: &judge(critic, &s, &cql_next.action, false)?,
            next_log_prob: &cql_next.log_prob,
        };
        let penalty = cql::penalty(settings, values, &q, bound.as_ref())?;
        case.value(&format!("q{}", j + 1), &q)?;
        case.value(&format!("lse{}", j + 1), &penalty.log_sum_exp)?;
        if bound.is_some() {
            case.value(&format!("bound_rate{}", j + 1), &penalty.bound_rate)?;
        }
        penalties.push(penalty.per_member);
        errors.push(critic::bellman_errors(&q, &target)?);
    }
    let (penalty, bellman) = (Tensor::stack(&penalties, 0)?, Tensor::stack(&errors, 0)?);
    let loss = (penalty.sum_all()? + bellman.sum_all()?)?;
    let gradients = loss.backward()?;
    case.value("policy_action", &now.action)?;
    case.value("policy_next_action", &cql_next.action)?;
    case.value("policy_log_prob", &now.log_prob)?;
    case.value("policy_next_log_prob", &cql_next.log_prob)?;
    case.value("target", &target)?;
    case.value("penalty_per_critic", &penalty)?;
    case.value("bellman_per_critic", &bellman)?;
    case.value("penalty", &penalty.sum_all()?)?;
    case.value("bellman", &bellman.sum_all()?)?;
    case.value("loss", &loss)?;
    case.gradients("critic1", &critics[0], &gradients)?;
    case.gradients("critic2", &critics[1], &gradients)
}

fn density_ratio(case: &mut Case) -> Result<()> {
    let net = case.stack("weight")?;
    let activation = match case.text("output_activation")? {
        "relu" => OutputActivation::Relu,
        "softplus" => OutputActivation::Softplus,
        "exp" => OutputActivation::Exp,
        other => bail!("unknown output activation {other}"),
    };
    let ratio = |rows: &str| -> Result<Tensor> {
        let out = net.forward(&case.input(rows)?)?.squeeze(2)?.squeeze(0)?;
        Ok(density_ratio::ratio(&out, activation)?)
    };
    let (online, offline, minibatch) = (ratio("online")?, ratio("offline")?, ratio("minibatch")?.detach());
    let loss = density_ratio::loss(&online, &offline)?;
    let gradients = loss.backward()?;
    let temperature = case.number("priority_temperature")?;
    let (min, max) = (case.number("clip_min")? as f32, case.number("clip_max")? as f32);
    let priorities = density_ratio::priorities(&minibatch, &offline, temperature, min, max)?;
    let priorities: Vec<f64> = priorities.into_iter().map(f64::from).collect();
    let js = density_ratio::js_estimate(f64::from(loss.to_scalar::<f32>()?));
    let normaliser = density_ratio::normaliser(&offline, temperature)?;
    case.value("w_online", &online)?;
    case.value("w_offline", &offline)?;
    case.value("w_minibatch", &minibatch)?;
    case.value("loss", &loss)?;
    case.compare("out.js_estimate", None, &[js])?;
    case.compare("out.normaliser", None, &[normaliser])?;
    case.compare("out.priorities", None, &priorities)?;
    case.gradients("weight", &net, &gradients)
}

fn adam_polyak(case: &mut Case) -> Result<()> {
    ensure!(case.number("weight_decay")? == 0.0, "weight decay is not offered");
    let settings = AdamSettings {
        learning_rate: case.number("lr")?,
        beta1: case.number("beta1")?,
        beta2: case.number("beta2")?,
        eps: case.number("eps")?,
    };
    for name in ["a", "b"] {
        let (online, target) = (flat(case, "param", name)?, flat(case, "target", name)?);
        let mut adam = Adam::new(online.vars(), settings)?;
        let mut rows: [Vec<f64>; 4] = Default::default();
        for step in 0..case.number("steps")? as usize {
            let gradient = case.input(&format!("gradient.{name}"))?.get(step)?.flatten_all()?;
            adam.step(&linear_loss(&online, &gradient)?.backward()?)?;
            polyak(&target, &online, case.number("tau")?)?;
            let state = adam.state()?;
            let now = [numbers(&online)?, state.m[0].clone(), state.v[0].clone(), numbers(&target)?];
            for (all, now) in rows.iter_mut().zip(now) {
                all.extend(now.into_iter().take(gradient.elem_count()).map(f64::from));
            }
        }
        for (what, got) in ["param", "m", "v", "target"].iter().zip(&rows) {
            case.compare(&format!("out.{what}.{name}"), None, got)?;
        }
    }
    Ok(())
}

/// A stack whose parameters are the file's numbers and one bias.
fn flat(case: &Case, role: &str, name: &str) -> Result<Stack> {
    let weight = case.input(&format!("{role}.{name}"))?.flatten_all()?.to_vec1::<f32>()?;
    let layer = LayerWeights { inputs: weight.len(), outputs: 1, weight, bias: vec![0.0], layer_norm: None };
    Ok(Stack::from_weights(&StackWeights { members: 1, layers: vec![layer] }, &Device::Cpu)?)
}

/// A loss whose gradient is `gradient`, and 0 for the bias.
fn linear_loss(stack: &Stack, gradient: &Tensor) -> Result<Tensor> {
    let var = &stack.vars()[0];
    Ok((var.narrow(1, 0, gradient.elem_count())?.squeeze(0)? * gradient)?.sum_all()?)
}

fn numbers(stack: &Stack) -> Result<Vec<f32>> {
    Ok(stack.to_weights()?.layers.remove(0).weight)
}

fn awac_actor(case: &mut Case) -> Result<()> {
    let (critic1, critic2, actor) = (case.stack("critic1")?, case.stack("critic2")?, case.stack("actor")?);
    let (s, a) = (case.input("observation")?, case.input("action")?);
    let (mean, std) = moments(&actor.forward(&s)?, case.bounds()?)?;
    let now = sample(&mean.detach(), &std.detach(), &case.input("noise")?)?;
    let judge = |action: &Tensor| -> Result<Tensor> {
        let x = state_action(&s, action)?;
        let (q1, q2) = (squeeze(&critic1.forward_detached(&x)?)?, squeeze(&critic2.forward_detached(&x)?)?);
        Ok(actor::value(&q1, &q2, actor_operator(case)?)?)
    };
    let (data, policy) = (judge(&a)?, judge(&now.action)?);
    let weight = actor::advantage_weights(&data, &policy, case.number("beta")?)?;
    let log_prob = log_prob_of(&mean, &std, &a, case.number("action_clip")?)?;
    let loss = actor::advantage_weighted_loss(&weight, &log_prob)?;
    let gradients = loss.backward()?;
    case.value("advantage", &(data - policy)?)?;
    case.value("weight", &weight)?;
    case.value("log_prob", &log_prob)?;
    case.value("actor_loss", &loss)?;
    case.gradients("actor", &actor, &gradients)
}

fn bc_actor(case: &mut Case) -> Result<()> {
    let actor = case.stack("actor")?;
    let out = actor.forward(&case.input("observation")?)?;
    let (mean, std) = match case.text("policy")? {
        "member" => member_moments(&out, case.bounds()?)?,
        "ensemble" => {
            let (mean, std) = moments(&out, case.bounds()?)?;
            (mean.unsqueeze(0)?, std.unsqueeze(0)?)
        }
        other => bail!("unknown policy {other}"),
    };
    let drawn = tanh_gaussian::sample(&mean, &std, &case.input("noise")?)?;
    let data = log_prob_of(&mean, &std, &case.input("action")?, case.number("action_clip")?)?;
    let alpha = case.input("log_alpha")?.exp()?;
    let loss = actor::behaviour_cloning_loss(&alpha, &drawn.log_prob, &data)?;
    let gradients = loss.backward()?;
    case.value("log_prob", &drawn.log_prob)?;
    case.value("data_log_prob", &data)?;
    case.value("actor_loss", &loss)?;
    case.gradients("actor", &actor, &gradients)
}
