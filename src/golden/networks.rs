//! Golden files of networks by themselves: density ratio, optimiser and target copies, convolutional encoder.

use candle_core::{Device, Tensor};

use super::case::Case;
use super::{GoldenError, Result};
use crate::nn::{Adam, AdamSettings, ConvEncoder, ConvEncoderWeights, ConvWeights, LayerWeights, Stack, StackWeights};
use crate::rl::density_ratio::{self, OutputActivation};

pub(super) fn density_ratio(case: &mut Case) -> Result<()> {
    let net = case.stack("weight")?;
    let choices =
        [("relu", OutputActivation::Relu), ("softplus", OutputActivation::Softplus), ("exp", OutputActivation::Exp)];
    let activation = case.choice("output_activation", &choices)?;
    let ratio = |rows: &str| -> Result<Tensor> {
        let out = net.forward(&case.input(rows)?)?.squeeze(2)?.squeeze(0)?;
        Ok(density_ratio::ratio(&out, activation)?)
    };
    let (online, offline) = (ratio("online")?, ratio("offline")?);
    let minibatch = case.has("in.minibatch").then(|| ratio("minibatch")).transpose()?;
    let loss = density_ratio::loss(&online, &offline)?;
    let gradients = loss.backward()?;
    let js = density_ratio::js_estimate(f64::from(loss.to_scalar::<f32>()?));
    case.value("w_online", &online)?;
    case.value("w_offline", &offline)?;
    case.value("loss", &loss)?;
    case.compare("out.js_estimate", None, &[js])?;
    if let Some(minibatch) = minibatch {
        let temperature = case.number("priority_temperature")?;
        let (min, max) = (case.number("clip_min")? as f32, case.number("clip_max")? as f32);
        let priorities = density_ratio::priorities(&minibatch.detach(), &offline, temperature, min, max)?;
        let priorities: Vec<f64> = priorities.into_iter().map(f64::from).collect();
        case.value("w_minibatch", &minibatch)?;
        case.compare("out.normaliser", None, &[density_ratio::normaliser(&offline, temperature)?])?;
        case.compare("out.priorities", None, &priorities)?;
    }
    case.gradients("weight", &net, &gradients)
}

pub(super) fn adam_polyak(case: &mut Case) -> Result<()> {
    if case.number_or("weight_decay", 0.0)? != 0.0 {
        return Err(GoldenError::Setting {
            key: "weight_decay",
            value: case.text("weight_decay").ok().map(Into::into),
        });
    }
    let settings = AdamSettings {
        learning_rate: case.number("lr")?,
        beta1: case.number("beta1")?,
        beta2: case.number("beta2")?,
        eps: case.number("eps")?,
    };
    for name in case.inputs("param.") {
        let (online, target) = (flat(case, "param", &name)?, flat(case, "target", &name)?);
        let mut adam = Adam::new(online.vars(), settings)?;
        let mut rows: [Vec<f64>; 4] = Default::default();
        let gradients = case.input(&format!("gradient.{name}"))?;
        for step in 0..gradients.dim(0)? {
            let gradient = gradients.get(step)?.flatten_all()?;
            let gradients = linear_loss(&online, &gradient)?.backward()?;
            adam.step_followed(&gradients, &target.vars(), case.number("tau")?)?;
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
    let weight = case.numbers(&format!("{role}.{name}"))?;
    let layer = LayerWeights { inputs: weight.len(), outputs: 1, weight, bias: vec![0.0], layer_norm: None };
    Ok(Stack::from_weights(&StackWeights { members: 1, layers: vec![layer] }, &case.device)?)
}

/// A loss whose gradient is `gradient`, and 0 for the bias.
fn linear_loss(stack: &Stack, gradient: &Tensor) -> Result<Tensor> {
    let var = &stack.vars()[0];
    Ok((var.narrow(1, 0, gradient.elem_count())?.squeeze(0)? * gradient)?.sum_all()?)
}

fn numbers(stack: &Stack) -> Result<Vec<f32>> {
    Ok(stack.to_weights()?.layers.remove(0).weight)
}

pub(super) fn conv_encoder(case: &mut Case) -> Result<()> {
    let encoder = ConvEncoder::from_weights(&encoder_weights(case)?, &case.device)?;
    let &[batch, height, width, channels] = case.shape("image")? else {
        return Err(GoldenError::Shape { name: "in.image".into(), shape: case.shape("image")?.to_vec() });
    };
    let bytes: Vec<u8> = case.raw("in.image")?.1.iter().map(|v| *v as u8).collect();
    let image = Tensor::from_vec(bytes, (batch, height, width, channels), &Device::Cpu)?.to_device(&case.device)?;
    let encoded = encoder.forward(&image)?;
    let scalar = (case.input("probe")? * &encoded.features)?.sum_all()?;
    let gradients = scalar.backward()?;
    case.value("conv", &encoded.maps)?;
    case.value("features", &encoded.features)?;
    case.value("scalar", &scalar)?;
    for (l, (weight, bias)) in encoder.convolutions().iter().enumerate() {
        case.gradient(&format!("conv{l}.w"), weight, &gradients)?;
        case.gradient(&format!("conv{l}.b"), bias, &gradients)?;
    }
    case.gradient("fc.w", &encoder.dense().0, &gradients)?;
    case.gradient("fc.b", &encoder.dense().1, &gradients)
}

fn encoder_weights(case: &Case) -> Result<ConvEncoderWeights> {
    let mut convolutions = Vec::new();
    loop {
        let name = format!("conv{}.w", convolutions.len());
        if !convolutions.is_empty() && !case.has(&format!("in.{name}")) {
            break;
        }
        let &[outputs, inputs, 3, 3] = case.shape(&name)? else {
            return Err(GoldenError::Shape { name: name.clone(), shape: case.shape(&name)?.to_vec() });
        };
        let bias = case.numbers(&format!("conv{}.b", convolutions.len()))?;
        convolutions.push(ConvWeights { inputs, outputs, weight: case.numbers(&name)?, bias });
    }
    let &[inputs, outputs] = case.shape("fc.w")? else {
        return Err(GoldenError::Shape { name: "fc.w".into(), shape: case.shape("fc.w")?.to_vec() });
    };
    Ok(ConvEncoderWeights {
        convolutions,
        dense: (inputs, outputs),
        dense_weight: case.numbers("fc.w")?,
        dense_bias: case.numbers("fc.b")?,
    })
}
