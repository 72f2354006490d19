//! What happens to gradients between the backward pass and the optimiser.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};

use super::Stack;

impl Stack {
    /// Scales the gradient of each network of the stack whose Euclidean norm is above `limit` down to it.
    ///
    /// # Errors
    /// When the store has no gradient of this stack.
    pub fn limit_norm(&self, gradients: &mut GradStore, limit: f64) -> Result<()> {
        limit_norm(&self.parameters, gradients, limit)
    }

    /// Makes the last layers of all networks of all `stacks` learn as one: each gets the sum of their gradients, which
    /// is the gradient of a layer they share. Layers and optimiser moments that are equal stay equal.
    ///
    /// # Errors
    /// When the store has no gradient of a stack or the last layers have different shapes.
    pub fn share_last_layer(stacks: &[&Self], gradients: &mut GradStore) -> Result<()> {
        let mut total: Option<Tensor> = None;
        for stack in stacks {
            let (start, len) = stack.last_layer();
            let own = stack.gradient(gradients)?.narrow(1, start, len)?.sum_keepdim(0)?;
            total = Some(match total {
                Some(total) => (total + own)?,
                None => own,
            });
        }
        let Some(total) = total else { return Ok(()) };
        for stack in stacks {
            let (start, len) = stack.last_layer();
            let hidden = stack.gradient(gradients)?.narrow(1, 0, start)?;
            let shared = total.broadcast_as((stack.members(), len))?;
            gradients.insert(&stack.parameters, Tensor::cat(&[&hidden, &shared.contiguous()?], 1)?);
        }
        Ok(())
    }

    fn gradient(&self, gradients: &GradStore) -> Result<Tensor> {
        gradient(&self.parameters, gradients)
    }
}

/// [`Stack::limit_norm`] of a variable `(members, parameters of a network)`.
///
/// # Errors
/// When the store has no gradient of it.
pub fn limit_norm(parameters: &Var, gradients: &mut GradStore, limit: f64) -> Result<()> {
    let gradient = gradient(parameters, gradients)?;
    let norm = gradient.sqr()?.sum_keepdim(1)?.sqrt()?;
    // A norm of 0 gives infinity, which the minimum turns into 1.
    let scale = (norm.recip()? * limit)?.minimum(1.0)?;
    gradients.insert(parameters, gradient.broadcast_mul(&scale)?);
    Ok(())
}

fn gradient(parameters: &Var, gradients: &GradStore) -> Result<Tensor> {
    match gradients.get(parameters) {
        Some(gradient) => Ok(gradient.clone()),
        None => bail!("no gradient for networks of shape {:?} in the store", parameters.dims()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::Init;

    fn stack(seed: u64) -> Stack {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Stack::random(3, &[2, 5, 1], Init::default(), &mut rng, &Device::Cpu).unwrap()
    }

    fn rows() -> Tensor {
        Tensor::new(&[[0.3f32, -0.7], [1.1, 0.2]], &Device::Cpu).unwrap()
    }

    fn norms(stack: &Stack, gradients: &GradStore) -> Vec<f32> {
        let gradient = stack.gradient(gradients).unwrap();
        gradient.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn only_networks_above_the_limit_are_scaled() {
        let stack = stack(1);
        let weights = Tensor::new(&[[[0.0f32]], [[1.0]], [[100.0]]], &Device::Cpu).unwrap();
        let loss = stack.forward(&rows()).unwrap().broadcast_mul(&weights).unwrap().sum_all().unwrap();
        let mut gradients = loss.backward().unwrap();
        let before = norms(&stack, &gradients);
        let limit = before[1].midpoint(before[2]);
        stack.limit_norm(&mut gradients, f64::from(limit)).unwrap();
        let after = norms(&stack, &gradients);
        assert_eq!((before[0], after[0], after[1]), (0.0, 0.0, before[1]));
        assert!((after[2] - limit).abs() < 1e-4 * limit && before[2] > limit);
    }

    /// A stack whose head is a variable of its own, against the tied copies.
    #[test]
    fn tied_heads_get_the_gradient_of_a_shared_one() {
        let (one, two) = (stack(1), stack(2));
        let head = Var::new(&[[0.1f32], [0.2], [-0.3], [0.4], [0.5]], &Device::Cpu).unwrap();
        let (start, len) = one.last_layer();
        for stack in [&one, &two] {
            let hidden = stack.parameters.narrow(1, 0, start).unwrap();
            let bias = Tensor::zeros((3, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
            let row = head.as_tensor().detach().reshape((1, 5)).unwrap().broadcast_as((3, 5)).unwrap();
            let tied = Tensor::cat(&[&hidden, &row.contiguous().unwrap(), &bias], 1).unwrap();
            stack.parameters.set(&tied).unwrap();
        }
        let loss = |stack: &Stack| stack.forward(&rows()).unwrap().sqr().unwrap().sum_all().unwrap();
        let mut gradients = (loss(&one) + loss(&two)).unwrap().backward().unwrap();
        Stack::share_last_layer(&[&one, &two], &mut gradients).unwrap();
        let shared = {
            let through = |stack: &Stack| {
                let mut weights = stack.to_weights().unwrap();
                weights.layers.truncate(1);
                let body = Stack::from_weights(&weights, &Device::Cpu).unwrap();
                let hidden = body.forward_detached(&rows()).unwrap().relu().unwrap().detach();
                hidden.broadcast_matmul(&head).unwrap().sqr().unwrap().sum_all().unwrap()
            };
            let gradients = (through(&one) + through(&two)).unwrap().backward().unwrap();
            gradients.get(&head).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for stack in [&one, &two] {
            let got = stack.gradient(&gradients).unwrap().narrow(1, start, len).unwrap().to_vec2::<f32>().unwrap();
            for row in got {
                assert!(row.iter().zip(&shared).all(|(got, want)| (got - want).abs() < 1e-5 * want.abs().max(1.0)));
            }
        }
    }
}
