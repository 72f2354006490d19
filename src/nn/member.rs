//! Forward and backward pass of one network of a stack over plain slices.
//!
//! A network's parameters are one block: for each layer its weight `(inputs, outputs)`, its bias and, where the layer
//! has one, its layer norm's scale and shift. What the backward pass needs is one block as well: for each hidden
//! layer the ReLU's output `(rows, width)` and, behind a layer norm, the normalised rows and `1/std` of each row.

use super::kernels::{self, Matrix, Real, product, product_transposed};

/// Sizes and places of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Input width.
    pub(super) inputs: usize,
    /// Output width.
    pub(super) outputs: usize,
    /// Where the weight starts in the parameters; the bias follows it, then the layer norm's scale and shift.
    pub(super) start: usize,
    /// Whether a layer norm stands before the ReLU.
    pub(super) norm: bool,
}

impl Layer {
    /// Where the bias starts.
    pub(super) fn bias(&self) -> usize {
        self.start + self.inputs * self.outputs
    }

    /// Where the layer norm's scale starts; its shift follows.
    pub(super) fn scale(&self) -> usize {
        self.bias() + self.outputs
    }

    /// One past the last parameter.
    pub(super) fn end(&self) -> usize {
        self.scale() + if self.norm { 2 * self.outputs } else { 0 }
    }

    /// Numbers the forward pass keeps of this layer, when it is a hidden one.
    fn kept(&self, rows: usize) -> usize {
        rows * self.outputs + if self.norm { rows * (self.outputs + 1) } else { 0 }
    }
}

/// The shape of a network: at least one layer, widths that fit together, none of them 0, no norm on the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) layers: Vec<Layer>,
}

/// What a hidden layer kept.
struct Kept<'a, T> {
    output: &'a [T],
    normalised: &'a [T],
    inv_std: &'a [T],
}

impl Plan {
    /// Parameters of one network.
    pub(super) fn parameters(&self) -> usize {
        self.layers.last().map_or(0, Layer::end)
    }

    /// Input width.
    pub(super) fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |l| l.inputs)
    }

    /// Output width.
    pub(super) fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |l| l.outputs)
    }

    fn hidden(&self) -> &[Layer] {
        self.layers.split_last().map_or(&[], |(_, hidden)| hidden)
    }

    /// Numbers a forward pass over `rows` keeps.
    pub(super) fn kept(&self, rows: usize) -> usize {
        self.hidden().iter().map(|l| l.kept(rows)).sum()
    }

    /// Numbers a backward pass over `rows` needs as working space.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        4 * rows * self.widest()
    }

    fn widest(&self) -> usize {
        self.layers.iter().map(|l| l.outputs.max(l.inputs)).max().unwrap_or(0)
    }

    fn kept_of<'a, T>(&self, index: usize, kept: &'a [T], rows: usize) -> Kept<'a, T> {
        let start: usize = self.layers[..index].iter().map(|l| l.kept(rows)).sum();
        let layer = &self.layers[index];
        let (output, rest) = kept[start..][..layer.kept(rows)].split_at(rows * layer.outputs);
        let (normalised, inv_std) = rest.split_at(if layer.norm { rows * layer.outputs } else { 0 });
        Kept { output, normalised, inv_std }
    }

    /// `out = network(x)` for `x` `(rows, inputs)`; fills `kept`.
    pub(super) fn forward<T: Real>(&self, parameters: &[T], x: &[T], rows: usize, kept: &mut [T], out: &mut [T]) {
        let mut input = x;
        let mut rest = kept;
        for layer in self.hidden() {
            let (own, tail) = rest.split_at_mut(layer.kept(rows));
            rest = tail;
            let (output, norm) = own.split_at_mut(rows * layer.outputs);
            let weight = Matrix::rows(&parameters[layer.start..layer.bias()], layer.outputs);
            let bias = &parameters[layer.bias()..layer.scale()];
            let shape = (rows, layer.outputs, layer.inputs);
            if layer.norm {
                let (normalised, inv_std) = norm.split_at_mut(rows * layer.outputs);
                let (scale, shift) = parameters[layer.scale()..layer.end()].split_at(layer.outputs);
                product(shape, normalised, Matrix::rows(input, layer.inputs), weight);
                kernels::layer_norm_relu(normalised, bias, scale, shift, inv_std, output);
            } else {
                product(shape, output, Matrix::rows(input, layer.inputs), weight);
                kernels::add_bias_relu(output, bias);
            }
            input = output;
        }
        let Some(last) = self.layers.last() else {
            return;
        };
        let (weight, bias) = parameters[last.start..last.end()].split_at(last.inputs * last.outputs);
        if last.outputs == 1 {
            kernels::dot_rows(input, weight, bias[0], out);
        } else {
            let weight = Matrix::rows(weight, last.outputs);
            product((rows, last.outputs, last.inputs), out, Matrix::rows(input, last.inputs), weight);
            kernels::add_bias(out, bias);
        }
    }

    /// Gradients of `sum(out * g)` with respect to the parameters and to `x`, as far as asked for.
    ///
    /// `grad_parameters` is expected to be 0. Rows whose `g` is 0 cost nothing: a minimum over critics sends each
    /// row's gradient to one of them, a log-sum-exp none to entries that rounding loses.
    pub(super) fn backward<T: Real>(
        &self,
        pass: &Pass<'_, T>,
        mut grad_parameters: Option<&mut [T]>,
        grad_x: Option<&mut [T]>,
        scratch: &mut [T],
    ) {
        let Pass { parameters, x, rows, kept, g } = *pass;
        let Some((last, hidden)) = self.layers.split_last() else {
            return;
        };
        let active = active_rows(g, last.outputs, rows);
        let (mut delta, rest) = scratch.split_at_mut(rows * self.widest());
        let (mut next, packed) = rest.split_at_mut(rows * self.widest());
        let input_of = |index: usize| {
            if index == 0 { x } else { self.kept_of(index - 1, kept, rows).output }
        };
        if let Some(grad) = grad_parameters.as_deref_mut() {
            let g = pack(g, last.outputs, &active, rows, next);
            let input = pack(input_of(hidden.len()), last.inputs, &active, rows, packed);
            dense_gradient(last, input, g, active.len(), grad);
        }
        if hidden.is_empty() && grad_x.is_none() {
            return;
        }
        head_input_gradient(last, parameters, g, &active, delta, next);
        for (index, layer) in hidden.iter().enumerate().rev() {
            let kept = self.kept_of(index, kept, rows);
            let current = &mut delta[..active.len() * layer.outputs];
            kernels::relu_backward(current, kept.output, &active, layer.outputs);
            if layer.norm {
                if let Some(grad) = grad_parameters.as_deref_mut() {
                    let (scale, shift) = grad[layer.scale()..layer.end()].split_at_mut(layer.outputs);
                    let normalised = pack(kept.normalised, layer.outputs, &active, rows, packed);
                    kernels::add_column_dots(current, normalised, scale);
                    kernels::add_column_sums(current, shift);
                }
                let scale = &parameters[layer.scale()..][..layer.outputs];
                kernels::layer_norm_backward(current, kept.normalised, kept.inv_std, &active, scale);
            }
            if let Some(grad) = grad_parameters.as_deref_mut() {
                let input = pack(input_of(index), layer.inputs, &active, rows, packed);
                dense_gradient(layer, input, current, active.len(), grad);
            }
            if index == 0 && grad_x.is_none() {
                return;
            }
            let shape = (active.len(), layer.inputs, layer.outputs);
            product_transposed(shape, next, current, &parameters[layer.start..layer.bias()], packed);
            std::mem::swap(&mut delta, &mut next);
        }
        if let Some(grad_x) = grad_x {
            scatter_rows(&active, self.inputs(), delta, grad_x);
        }
    }
}

/// What a backward pass reads.
pub(super) struct Pass<'a, T> {
    /// The network's parameters.
    pub(super) parameters: &'a [T],
    /// The input of the forward pass.
    pub(super) x: &'a [T],
    /// Its rows.
    pub(super) rows: usize,
    /// What the forward pass kept.
    pub(super) kept: &'a [T],
    /// Gradient of the output, `(rows, outputs)`.
    pub(super) g: &'a [T],
}

/// Rows of `g` that are not all 0.
fn active_rows<T: Real>(g: &[T], width: usize, rows: usize) -> Vec<usize> {
    (0..rows).filter(|r| g[r * width..][..width].iter().any(|v| *v != T::zero())).collect()
}

/// The active rows of `all` side by side: `all` itself when every row is active, else a copy in `space`.
fn pack<'a, T: Real>(all: &'a [T], width: usize, active: &[usize], rows: usize, space: &'a mut [T]) -> &'a [T] {
    if active.len() == rows {
        return all;
    }
    let packed = &mut space[..active.len() * width];
    for (to, row) in packed.chunks_exact_mut(width).zip(active) {
        to.copy_from_slice(&all[row * width..][..width]);
    }
    packed
}

/// Weight and bias gradient of a dense layer from the gradient of its output.
fn dense_gradient<T: Real>(layer: &Layer, input: &[T], delta: &[T], rows: usize, grad: &mut [T]) {
    let (weight, bias) = grad[layer.start..layer.scale()].split_at_mut(layer.inputs * layer.outputs);
    if layer.outputs == 1 {
        kernels::add_weighted_rows(input, delta, weight);
    } else {
        let shape = (layer.inputs, layer.outputs, rows);
        product(shape, weight, Matrix::transposed(input, layer.inputs), Matrix::rows(delta, layer.outputs));
    }
    kernels::add_column_sums(delta, bias);
}

/// Input gradient of the last layer for the active rows, packed.
fn head_input_gradient<T: Real>(
    last: &Layer,
    parameters: &[T],
    g: &[T],
    active: &[usize],
    delta: &mut [T],
    space: &mut [T],
) {
    let weight = &parameters[last.start..last.bias()];
    let delta = &mut delta[..active.len() * last.inputs];
    if last.outputs == 1 {
        kernels::outer_rows(g, active, weight, delta);
        return;
    }
    let packed = pack(g, last.outputs, active, g.len() / last.outputs, space);
    let shape = (active.len(), last.inputs, last.outputs);
    product(shape, delta, Matrix::rows(packed, last.outputs), Matrix::transposed(weight, last.outputs));
}

/// Puts packed rows back to their places in `out`, which is 0.
fn scatter_rows<T: Real>(active: &[usize], width: usize, packed: &[T], out: &mut [T]) {
    for (row, r) in packed.chunks_exact(width).zip(active) {
        out[r * width..][..width].copy_from_slice(row);
    }
}
