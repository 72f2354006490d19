//! Every kernel once, before anything depends on its time.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::queue::{Grid, Queue, launch};
use super::{AdamStep, Backup, ValueRule};

/// Runs every kernel and a matrix product on tiny inputs and waits for them.
///
/// # Errors
/// When the device refuses one.
pub fn warm_up(device: &Device) -> Result<()> {
    const SHAPE: (usize, usize) = (2, 3);
    let ones = |dims: &[usize]| Tensor::ones(dims, DType::F32, device);
    let vars = [(); 4].map(|()| Var::ones(SHAPE, DType::F32, device));
    let [a, b, c, d] = vars;
    let (a, b, c, d) = (a?, b?, c?, d?);
    let (row, loss) = (ones(&[3])?, super::twin_loss(&a, &b, &ones(&[2, 3])?)?);
    loss.backward()?;
    super::td_target(&a, &b, Backup::Subset(&[0]), &row, &row, None, 0.5)?;
    super::actor_value(&a, &b, ValueRule::Min)?.sum_all()?.backward()?;
    let ratio = super::ratio(&a.flatten_all()?, super::Activation::Relu)?;
    super::density_loss(&ratio, &ones(&[6])?)?.backward()?;
    super::priorities(&row, &row, 1.0, 0.0, 1.0)?;
    let output = Var::ones((2, 3, 2), DType::F32, device)?;
    let [action, _, log_prob] = super::policy_sample(&output, &ones(&[3, 1])?, (-1.0, 2.0))?;
    (action.sum_all()? + log_prob.sum_all()?)?.backward()?;
    super::normalise_images(&Tensor::zeros((1, 2, 2, 1), DType::U8, device)?, None)?;
    let step = AdamStep { beta1: 0.5, take1: 0.5, beta2: 0.5, take2: 0.5, rate: 0.1, root_scale: 1.0, eps: 1.0 };
    super::adam_polyak(&a, &b, &c, &ones(&[2, 3])?, Some((&d, 0.5)), step)?;
    stack(device)?;
    device.synchronize()
}

/// The kernels between a stack's products: two members of two rows and two columns, their scales and shifts behind
/// their biases.
fn stack(device: &Device) -> Result<()> {
    let queue = Queue::of(device)?;
    let parameters = Tensor::ones((2, 6), DType::F32, device)?;
    let [x, out, inv_std] = [8, 8, 4].map(|n| queue.alloc(n));
    let (x, out, inv_std) = (x?, out?, inv_std?);
    let given = Tensor::ones(8, DType::F32, device)?;
    launch!(queue, "sum_members", Grid::Elements(8), &given, 1usize, 8usize, &x)?;
    launch!(queue, "bias_relu", Grid::Elements(8), &x, &parameters, 0usize, 6usize, 2usize, 2usize, 2usize, 1)?;
    launch!(
        queue,
        "layer_norm_relu",
        Grid::Rows(4),
        &x,
        &parameters,
        0usize,
        6usize,
        2usize,
        2usize,
        2usize,
        &inv_std,
        &out
    )?;
    launch!(queue, "relu_backward", Grid::Elements(8), &out, &given, 8usize)?;
    let columns = Grid::Columns { width: 2, members: 2 };
    let gradient = queue.alloc(12)?;
    launch!(queue, "column_sums", columns, &out, &given, 0usize, 6usize, 2usize, 2usize, &gradient)?;
    let (normalised, inv_std) = (x.tensor(8), inv_std.tensor(4));
    launch!(
        queue,
        "layer_norm_backward",
        Grid::Rows(4),
        &out,
        &normalised,
        &inv_std,
        &parameters,
        2usize,
        6usize,
        2usize,
        2usize,
        2usize
    )
}
