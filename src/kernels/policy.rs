//! A draw from the moment-matched tanh-Gaussian of an ensemble.

use candle_core::{Result, Tensor, bail};

use super::operation::Operation;
use super::queue::{Grid, Queue, launch};

/// Action `tanh(z)`, `z` and `log pi(action)` for given noise, all differentiable in the actors' output `(members,
/// batch, 2 action)`.
///
/// `noise` is `(batch, action)` or `(samples, batch, action)`; action and `z` have its shape, the log-probability lacks
/// its last dimension. `log_std`: bounds of a member's log standard deviation.
///
/// # Errors
/// When shapes do not fit.
pub fn policy_sample(output: &Tensor, noise: &Tensor, log_std: (f32, f32)) -> Result<[Tensor; 3]> {
    let (members, batch, double) = output.dims3()?;
    let (width, (low, high)) = (double / 2, log_std);
    let samples = match *noise.dims() {
        [rows, entries] if (rows, 2 * entries) == (batch, double) => 1,
        [samples, rows, entries] if (rows, 2 * entries) == (batch, double) => samples,
        _ => bail!("noise {:?} for outputs {:?} of actors", noise.dims(), output.dims()),
    };
    let (output, noise) = (output.contiguous()?, noise.detach().contiguous()?);
    let (queue, rows) = (Queue::of(output.device())?, samples * batch);
    let row = 2 * width + 1;
    let drawn = queue.alloc(rows * row)?;
    launch!(
        queue,
        "policy_sample",
        Grid::Rows(rows),
        &output,
        &noise,
        members,
        batch,
        width,
        samples,
        low,
        high,
        &drawn
    )?;
    let (input, entries) = (output.detach(), noise.clone());
    let backward = move |drawn: &Tensor, g: &Tensor| {
        let gradient = queue.alloc(input.elem_count())?;
        launch!(
            queue,
            "policy_sample_backward",
            Grid::Elements(batch * width),
            &input,
            &entries,
            drawn,
            g,
            members,
            batch,
            width,
            samples,
            low,
            high,
            &gradient
        )?;
        Ok([Some(gradient.tensor(input.shape()))])
    };
    let drawn = Operation::<1>::new("policy-sample", drawn, (rows, row), backward).of(&output)?;
    let part = |start, shape: &[usize]| drawn.narrow(1, start, width)?.reshape(shape);
    let leading = &noise.dims()[..noise.rank() - 1];
    Ok([part(0, noise.dims())?, part(width, noise.dims())?, drawn.narrow(1, 2 * width, 1)?.reshape(leading)?])
}
