//! The stack as one differentiable operation on a GPU: batched matrix products, and kernels for what is between them.
//!
//! Parameters stay where they are: a product reads a layer of all members out of their blocks with a stride. Nothing
//! is skipped for rows without gradient, so every update sends the same kernels.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::member::{Layer, Plan};
use crate::kernels::{Gemm, Grid, Memory, Operation, Queue, launch};

/// Bytes of a number.
const SIZE: u64 = 4;

/// One application of a stack to an input.
#[derive(Clone)]
struct Pass {
    queue: Queue,
    plan: Arc<Plan>,
    members: usize,
    rows: usize,
    /// Whether each member has an input of its own.
    own: bool,
}

/// What a hidden layer keeps for the backward pass.
struct Kept {
    output: Tensor,
    /// Normalised rows and `1/std` of each, behind a layer norm.
    norm: Option<(Tensor, Tensor)>,
}

/// `(members, rows, outputs)` for `x` as [`super::Stack::forward`] takes it; gradients flow to what tracks them.
///
/// # Errors
/// When the shape of `x` does not fit or the device fails.
pub(super) fn forward(plan: &Arc<Plan>, members: usize, x: &Tensor, parameters: &Tensor) -> Result<Tensor> {
    let (rows, own) = match *x.dims() {
        [rows, width] if width == plan.inputs() => (rows, false),
        [n, rows, width] if (n, width) == (members, plan.inputs()) => (rows, true),
        _ => bail!("input {:?} of a stack of {members} networks of width {}", x.dims(), plan.inputs()),
    };
    let (x, parameters) = (x.contiguous()?, parameters.contiguous()?);
    let pass = Pass { queue: Queue::of(x.device())?, plan: Arc::clone(plan), members, rows, own };
    let (output, kept) = pass.forward(&x, &parameters)?;
    let (input, weights, wanted) = (x.detach(), parameters.detach(), (x.track_op(), parameters.track_op()));
    let shape = (members, rows, plan.outputs());
    let backward = move |_: &Tensor, g: &Tensor| pass.backward(&input, &weights, &kept, g, wanted);
    Operation::<2>::new("network-stack", output, shape, backward).of(&x, &parameters)
}

impl Pass {
    fn forward(&self, x: &Tensor, parameters: &Tensor) -> Result<(Memory, Vec<Kept>)> {
        let Self { queue, plan, members, rows, .. } = self;
        let (members, rows, stride) = (*members, *rows, plan.parameters());
        let mut kept: Vec<Kept> = Vec::new();
        for (index, layer) in plan.layers.iter().enumerate() {
            let input = kept.last().map_or(x, |before| &before.output);
            let product = self.product(layer, input, parameters, index > 0 || self.own)?;
            let (width, last) = (layer.outputs, index + 1 == plan.layers.len());
            let shape = (members, rows, width);
            if layer.norm {
                let (inv_std, output) = (queue.alloc(members * rows)?, queue.alloc(members * rows * width)?);
                let grid = Grid::Rows(members * rows);
                launch!(
                    queue,
                    "layer_norm_relu",
                    grid,
                    &product,
                    parameters,
                    layer.bias(),
                    stride,
                    members,
                    rows,
                    width,
                    &inv_std,
                    &output
                )?;
                let norm = Some((product.tensor(shape), inv_std.tensor((members, rows))));
                kept.push(Kept { output: output.tensor(shape), norm });
                continue;
            }
            let (grid, relu) = (Grid::Elements(members * rows * width), i32::from(!last));
            launch!(queue, "bias_relu", grid, &product, parameters, layer.bias(), stride, members, rows, width, relu)?;
            if last {
                return Ok((product, kept));
            }
            kept.push(Kept { output: product.tensor(shape), norm: None });
        }
        bail!("a stack without a last layer")
    }

    /// `input W` of a layer, `(members, rows, outputs)`; `own`: each member has its input.
    fn product(&self, layer: &Layer, input: &Tensor, parameters: &Tensor, own: bool) -> Result<Memory> {
        let (rows, i, o) = (self.rows, layer.inputs, layer.outputs);
        let out = self.queue.alloc(self.members * rows * o)?;
        let (w, x) = (self.queue.open(parameters)?, self.queue.open(input)?);
        self.queue.gemm(&Gemm {
            transpose_a: false,
            transpose_b: false,
            shape: (o, rows, i),
            a: (w.at() + SIZE * layer.start as u64, o, self.plan.parameters()),
            b: (x.at(), i, if own { rows * i } else { 0 }),
            c: (out.at(), o, rows * o),
            batch: self.members,
        })?;
        Ok(out)
    }

    /// Gradients of the input and of the parameters, as far as wanted.
    fn backward(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        kept: &[Kept],
        g: &Tensor,
        (wants_input, wants_parameters): (bool, bool),
    ) -> Result<[Option<Tensor>; 2]> {
        let (queue, plan) = (&self.queue, &self.plan);
        let gradient = if wants_parameters { Some(queue.alloc(parameters.elem_count())?) } else { None };
        let given = queue.open(g)?;
        let mut delta: Option<Memory> = None;
        for (index, layer) in plan.layers.iter().enumerate().rev() {
            let at = delta.as_ref().map_or(given.at(), Memory::at);
            if let Some(kept) = kept.get(index) {
                self.hidden_backward(layer, kept, parameters, at, gradient.as_ref())?;
            }
            if let Some(gradient) = &gradient {
                let input = if index == 0 { x } else { &kept[index - 1].output };
                self.weight_gradient(layer, input, index > 0 || self.own, at, gradient)?;
            }
            if index > 0 || wants_input {
                delta = Some(self.input_gradient(layer, parameters, at)?);
            }
        }
        let gradient = gradient.map(|gradient| gradient.tensor(parameters.shape()));
        Ok([if wants_input { self.of_input(x, delta)? } else { None }, gradient])
    }

    /// Turns the gradient of a hidden layer's output into that of its matrix product, in place.
    fn hidden_backward(
        &self,
        layer: &Layer,
        kept: &Kept,
        parameters: &Tensor,
        delta: u64,
        gradient: Option<&Memory>,
    ) -> Result<()> {
        let Self { queue, plan, members, rows, .. } = self;
        let (members, rows, width, stride) = (*members, *rows, layer.outputs, plan.parameters());
        let n = members * rows * width;
        launch!(queue, "relu_backward", Grid::Elements(n), delta, &kept.output, n)?;
        let Some((normalised, inv_std)) = &kept.norm else { return Ok(()) };
        if let Some(gradient) = gradient {
            self.column_sums(delta, Some(normalised), layer.scale(), width, gradient)?;
            self.column_sums(delta, None, layer.scale() + width, width, gradient)?;
        }
        let (grid, scale) = (Grid::Rows(members * rows), layer.scale());
        launch!(
            queue,
            "layer_norm_backward",
            grid,
            delta,
            normalised,
            inv_std,
            parameters,
            scale,
            stride,
            members,
            rows,
            width
        )
    }

    /// `gradient[m][at ..] = sum_r delta[m][r] (x[m][r])`.
    fn column_sums(&self, delta: u64, x: Option<&Tensor>, at: usize, width: usize, gradient: &Memory) -> Result<()> {
        let (grid, stride) = (Grid::Columns { width, members: self.members }, self.plan.parameters());
        launch!(self.queue, "column_sums", grid, delta, x, at, stride, self.rows, width, gradient)
    }

    /// Weight and bias gradient of a layer.
    fn weight_gradient(&self, layer: &Layer, input: &Tensor, own: bool, delta: u64, gradient: &Memory) -> Result<()> {
        let (rows, i, o) = (self.rows, layer.inputs, layer.outputs);
        let x = self.queue.open(input)?;
        self.queue.gemm(&Gemm {
            transpose_a: false,
            transpose_b: true,
            shape: (o, i, rows),
            a: (delta, o, rows * o),
            b: (x.at(), i, if own { rows * i } else { 0 }),
            c: (gradient.at() + SIZE * layer.start as u64, o, self.plan.parameters()),
            batch: self.members,
        })?;
        self.column_sums(delta, None, layer.bias(), o, gradient)
    }

    /// `delta W^T`, `(members, rows, inputs)`.
    fn input_gradient(&self, layer: &Layer, parameters: &Tensor, delta: u64) -> Result<Memory> {
        let (rows, i, o) = (self.rows, layer.inputs, layer.outputs);
        let (out, w) = (self.queue.alloc(self.members * rows * i)?, self.queue.open(parameters)?);
        self.queue.gemm(&Gemm {
            transpose_a: true,
            transpose_b: false,
            shape: (i, rows, o),
            a: (w.at() + SIZE * layer.start as u64, o, self.plan.parameters()),
            b: (delta, o, rows * o),
            c: (out.at(), i, rows * i),
            batch: self.members,
        })?;
        Ok(out)
    }

    /// The members' gradients of an input, added up where they share it.
    fn of_input(&self, x: &Tensor, delta: Option<Memory>) -> Result<Option<Tensor>> {
        let Some(each) = delta else { bail!("a stack without layers has no gradient") };
        if self.own {
            return Ok(Some(each.tensor(x.shape())));
        }
        let n = x.elem_count();
        let sum = self.queue.alloc(n)?;
        launch!(self.queue, "sum_members", Grid::Elements(n), &each, self.members, n, &sum)?;
        Ok(Some(sum.tensor(x.shape())))
    }
}
