//! Adam and the slow copy of target networks, in place.

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};

use super::Stack;
use super::kernels;
use super::stack_op::{cpu, slice};
use crate::kernels::{AdamStep, adam_polyak, take};

/// Settings of [`Adam`]. There is no weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamSettings {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, outside of it.
    pub eps: f64,
}

impl Default for AdamSettings {
    fn default() -> Self {
        Self { learning_rate: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Host copy of an optimiser, for checkpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdamState {
    /// Steps done.
    pub step: u64,
    /// First moments, one array per variable.
    pub m: Vec<Vec<f32>>,
    /// Second moments.
    pub v: Vec<Vec<f32>>,
}

/// Adam (Kingma and Ba, 2015) with bias corrections computed in double precision. f32 only.
#[derive(Debug)]
pub struct Adam {
    settings: AdamSettings,
    step: u64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    var: Var,
    m: Var,
    v: Var,
}

impl Adam {
    /// An optimiser with moments 0.
    ///
    /// # Errors
    /// When a variable is not f32.
    pub fn new(vars: Vec<Var>, settings: AdamSettings) -> Result<Self> {
        let slot = |var: Var| {
            if var.dtype() != DType::F32 {
                bail!("Adam works in f32, got a variable in {:?}", var.dtype());
            }
            let zeros = || Var::zeros(var.shape(), DType::F32, var.device());
            Ok(Slot { m: zeros()?, v: zeros()?, var })
        };
        Ok(Self { settings, step: 0, slots: vars.into_iter().map(slot).collect::<Result<_>>()? })
    }

    /// One step. A gradient of 0 still moves a parameter that has momentum.
    ///
    /// # Errors
    /// When a variable has no gradient; then nothing was changed.
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        self.apply(&self.found(gradients)?, None)
    }

    /// [`Adam::step`]; then `target = (1 - tau) target + tau variable` for the slow copy `targets` of the variables, in
    /// their order. On a GPU that is one kernel per variable.
    ///
    /// # Errors
    /// When a variable has no gradient or a target has another shape; then nothing was changed.
    pub fn step_followed(&mut self, gradients: &GradStore, targets: &[Var], tau: f64) -> Result<()> {
        let own = self.slots.iter().map(|slot| slot.var.dims());
        if !own.clone().eq(targets.iter().map(|target| target.dims())) {
            let (own, others): (Vec<_>, Vec<_>) = (own.collect(), targets.iter().map(|target| target.dims()).collect());
            bail!("target networks have shapes {others:?}, the networks they follow {own:?}");
        }
        self.apply(&self.found(gradients)?, Some((targets, tau)))
    }

    /// One step with a gradient of 0: what momentum is left moves the parameters.
    ///
    /// # Errors
    /// When candle cannot run the operation.
    pub fn step_idle(&mut self) -> Result<()> {
        let zeros: Vec<Tensor> = self.slots.iter().map(|s| s.var.zeros_like()).collect::<Result<_>>()?;
        self.apply(&zeros, None)
    }

    fn found(&self, gradients: &GradStore) -> Result<Vec<Tensor>> {
        self.slots.iter().map(|slot| gradient(gradients, &slot.var)).collect()
    }

    fn apply(&mut self, found: &[Tensor], targets: Option<(&[Var], f64)>) -> Result<()> {
        self.step += 1;
        let corrections = self.corrections();
        for (index, (slot, gradient)) in self.slots.iter().zip(found).enumerate() {
            let target = targets.map(|(targets, tau)| (&targets[index], tau));
            if take(&slot.var) {
                adam_polyak(&slot.var, &slot.m, &slot.v, gradient, target, corrections)?;
            } else {
                slot.step(gradient, corrections)?;
                target.map_or(Ok(()), |(target, tau)| slot.lead(target, tau))?;
            }
        }
        Ok(())
    }

    fn corrections(&self) -> AdamStep {
        let AdamSettings { learning_rate, beta1, beta2, eps } = self.settings;
        let t = self.step as f64;
        AdamStep {
            beta1: beta1 as f32,
            take1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            take2: (1.0 - beta2) as f32,
            rate: (learning_rate / (1.0 - beta1.powf(t))) as f32,
            root_scale: (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
            eps: eps as f32,
        }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Copies the optimiser to the host.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn state(&self) -> Result<AdamState> {
        let host = |t: &Var| t.flatten_all()?.to_vec1::<f32>();
        Ok(AdamState {
            step: self.step,
            m: self.slots.iter().map(|s| host(&s.m)).collect::<Result<_>>()?,
            v: self.slots.iter().map(|s| host(&s.v)).collect::<Result<_>>()?,
        })
    }

    /// Takes over a host copy.
    ///
    /// # Errors
    /// When its arrays do not fit the variables; then nothing was changed.
    pub fn restore(&mut self, state: &AdamState) -> Result<()> {
        let lengths = |arrays: &[Vec<f32>]| arrays.iter().map(Vec::len).collect::<Vec<_>>();
        let own: Vec<usize> = self.slots.iter().map(|s| s.var.elem_count()).collect();
        if lengths(&state.m) != own || lengths(&state.v) != own {
            bail!("optimiser state has arrays of {:?} and {:?}, want {own:?}", lengths(&state.m), lengths(&state.v));
        }
        for ((slot, m), v) in self.slots.iter().zip(&state.m).zip(&state.v) {
            slot.m.set(&Tensor::from_slice(m, slot.var.shape(), slot.var.device())?)?;
            slot.v.set(&Tensor::from_slice(v, slot.var.shape(), slot.var.device())?)?;
        }
        self.step = state.step;
        Ok(())
    }
}

impl Slot {
    fn step(&self, gradient: &Tensor, step: AdamStep) -> Result<()> {
        let (guard, layout) = gradient.storage_and_layout();
        let g = slice::<f32>(cpu(&guard)?, layout)?;
        edit(&self.m, |m| {
            edit(&self.v, |v| {
                edit(&self.var, |p| {
                    kernels::adam(p, m, v, g, step);
                    Ok(())
                })
            })
        })
    }

    /// Moves `target` towards the variable.
    fn lead(&self, target: &Var, tau: f64) -> Result<()> {
        let (guard, layout) = self.var.storage_and_layout();
        let online = slice::<f32>(cpu(&guard)?, layout)?;
        edit(target, |target| {
            kernels::blend(target, online, tau);
            Ok(())
        })
    }

    /// The same as [`Slot::step`] in candle's own operations.
    #[cfg(test)]
    fn step_algebra(&self, g: &Tensor, settings: AdamSettings, step: AdamStep) -> Result<()> {
        let AdamSettings { beta1, beta2, .. } = settings;
        self.m.set(&((self.m.as_detached_tensor() * beta1)? + (g * (1.0 - beta1))?)?)?;
        self.v.set(&((self.v.as_detached_tensor() * beta2)? + (g.sqr()? * (1.0 - beta2))?)?)?;
        let root = ((self.v.as_detached_tensor().sqrt()? * f64::from(step.root_scale))? + f64::from(step.eps))?;
        let change = ((self.m.as_detached_tensor() / root)? * f64::from(step.rate))?;
        self.var.set(&(self.var.as_detached_tensor() - change)?)
    }
}

fn gradient(gradients: &GradStore, var: &Var) -> Result<Tensor> {
    let Some(gradient) = gradients.get(var) else {
        bail!("a variable of shape {:?} has no gradient: the loss does not depend on it", var.dims())
    };
    if gradient.dims() != var.dims() {
        bail!("a gradient has shape {:?}, its variable {:?}", gradient.dims(), var.dims());
    }
    gradient.contiguous()
}

/// `target = online`.
///
/// # Errors
/// When the stacks have different shapes.
pub fn copy_into(target: &Stack, online: &Stack) -> Result<()> {
    copy_vars(&target.vars(), &online.vars())
}

/// [`copy_into`] of variables in the same order.
///
/// # Errors
/// When the shapes differ.
pub fn copy_vars(target: &[Var], online: &[Var]) -> Result<()> {
    target.iter().zip(online).try_for_each(|(target, online)| target.set(online))
}

/// Changes the numbers of a contiguous f32 variable on the processor in place.
fn edit(var: &Var, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    var.inplace_op1(&Edit(RefCell::new(Some(change))))
}

struct Edit<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(data), Some((start, end)), Some(change)) => change(&mut data[start..end]),
            _ => bail!("in-place work needs a contiguous f32 variable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn two() -> [Var; 2] {
        [Var::new(&[1f32, -2.0, 3.0], &Device::Cpu).unwrap(), Var::new(0.5f32, &Device::Cpu).unwrap()]
    }

    fn gradients(vars: &[Var; 2]) -> GradStore {
        (vars[0].sqr().unwrap().sum_all().unwrap() + vars[1].sqr().unwrap()).unwrap().backward().unwrap()
    }

    #[test]
    fn a_restored_optimiser_continues_to_the_bit() {
        let (straight, resumed) = (two(), two());
        let mut adam = Adam::new(straight.to_vec(), AdamSettings::default()).unwrap();
        let mut first = Adam::new(resumed.to_vec(), AdamSettings::default()).unwrap();
        for _ in 0..3 {
            adam.step(&gradients(&straight)).unwrap();
            first.step(&gradients(&resumed)).unwrap();
        }
        let mut second = Adam::new(resumed.to_vec(), AdamSettings::default()).unwrap();
        second.restore(&first.state().unwrap()).unwrap();
        adam.step(&gradients(&straight)).unwrap();
        second.step(&gradients(&resumed)).unwrap();
        assert_eq!(straight[0].to_vec1::<f32>().unwrap(), resumed[0].to_vec1::<f32>().unwrap());
        assert_eq!(adam.state().unwrap(), second.state().unwrap());
        assert_eq!(adam.state().unwrap().step, 4);
    }

    #[test]
    fn eps_stands_outside_the_root() {
        // A first gradient of eps: both moments are corrected to it, so the step is half the rate.
        let var = Var::new(1f32, &Device::Cpu).unwrap();
        let settings = AdamSettings { learning_rate: 0.5, eps: 1e-3, ..AdamSettings::default() };
        let mut adam = Adam::new(vec![var.clone()], settings).unwrap();
        adam.step(&(var.as_tensor() * 1e-3).unwrap().backward().unwrap()).unwrap();
        assert!((var.to_scalar::<f32>().unwrap() - 0.75).abs() < 1e-5);
    }

    #[test]
    fn the_two_ways_of_a_step_agree() {
        let (fused, plain) = (two(), two());
        let mut adam = Adam::new(fused.to_vec(), AdamSettings::default()).unwrap();
        let mut other = Adam::new(plain.to_vec(), AdamSettings::default()).unwrap();
        for _ in 0..5 {
            adam.step(&gradients(&fused)).unwrap();
            let store = gradients(&plain);
            other.step += 1;
            for slot in &other.slots {
                slot.step_algebra(store.get(&slot.var).unwrap(), other.settings, other.corrections()).unwrap();
            }
        }
        let (a, b) = (fused[0].to_vec1::<f32>().unwrap(), plain[0].to_vec1::<f32>().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6) && (a[0] - 1.0).abs() > 1e-3);
    }

    /// Displacements of WSRL's actor bias after one real step and four idle ones, from the published optimiser.
    #[test]
    fn momentum_moves_on_in_idle_steps() {
        let var = Var::new(0f32, &Device::Cpu).unwrap();
        let settings = AdamSettings { learning_rate: 1e-4, ..AdamSettings::default() };
        let mut adam = Adam::new(vec![var.clone()], settings).unwrap();
        adam.step(&(var.as_tensor() * 0.37).unwrap().backward().unwrap()).unwrap();
        for want in [-1.0e-4, -1.67e-4, -2.19e-4, -2.61e-4, -2.97e-4] {
            let got = var.to_scalar::<f32>().unwrap();
            assert!((got - want).abs() < 0.006e-4, "{got} instead of {want}");
            adam.step_idle().unwrap();
        }
    }

    #[test]
    fn a_missing_gradient_and_a_foreign_state_are_refused() {
        let vars = two();
        let mut adam = Adam::new(vars.to_vec(), AdamSettings::default()).unwrap();
        let partial = vars[0].sum_all().unwrap().backward().unwrap();
        assert!(adam.step(&partial).is_err());
        assert_eq!(adam.state().unwrap().step, 0);
        assert_eq!(vars[0].to_vec1::<f32>().unwrap(), [1.0, -2.0, 3.0]);
        assert!(adam.restore(&AdamState { step: 1, m: vec![vec![0.0; 3]], v: vec![vec![0.0; 3]] }).is_err());
    }

    #[test]
    fn targets_follow_the_new_parameters() {
        let (vars, targets) = (two(), [0f32; 2].map(|v| Var::new(v, &Device::Cpu).unwrap()));
        let mut adam = Adam::new(vars.to_vec(), AdamSettings::default()).unwrap();
        // Refused before anything moves: a shape that differs, a target too few.
        for wrong in [&targets[..], &targets[1..]] {
            assert!(adam.step_followed(&gradients(&vars), wrong, 0.25).is_err());
        }
        assert_eq!((adam.steps(), vars[0].to_vec1::<f32>().unwrap()), (0, vec![1.0, -2.0, 3.0]));
        let targets = vars.each_ref().map(|var| Var::zeros(var.shape(), DType::F32, &Device::Cpu).unwrap());
        adam.step_followed(&gradients(&vars), &targets, 0.25).unwrap();
        for (target, var) in targets.iter().zip(&vars) {
            let row = |t: &Var| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(row(target).iter().zip(row(var)).all(|(target, v)| *target == 0.25 * v && v != 0.0));
        }
        assert_ne!(vars[0].to_vec1::<f32>().unwrap()[0], 1.0);
    }
}
