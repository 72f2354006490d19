//! The stack's own passes against candle's algebra and against central differences, in double precision.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Init, Stack};

/// What a test draws at random.
#[derive(Clone, Debug)]
struct Shape {
    members: usize,
    rows: usize,
    widths: Vec<usize>,
    layer_norm: bool,
    own_input: bool,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let widths = prop::collection::vec(1usize..38, 2..5);
    (1usize..4, 1usize..11, widths, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(members, rows, widths, layer_norm, own_input, seed)| Shape {
            members,
            rows,
            widths,
            layer_norm,
            own_input,
            seed,
        },
    )
}

/// A stack in f64 with every parameter drawn from `[-1, 1]`, an input that tracks gradients, and a probe for its output.
fn build(shape: &Shape) -> Result<(Stack, Var, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(shape.seed);
    let init = Init { last_bias: None, layer_norm: shape.layer_norm };
    let mut stack = Stack::random(shape.members, &shape.widths, init, &mut rng, &Device::Cpu)?;
    let mut draw = |dims: &[usize]| {
        let numbers: Vec<f64> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..=1.0)).collect();
        Tensor::from_vec(numbers, dims, &Device::Cpu)
    };
    stack.parameters = Var::from_tensor(&draw(stack.parameters.dims())?)?;
    let (inputs, outputs) = (stack.inputs(), stack.outputs());
    let own = [shape.members, shape.rows, inputs];
    let x = Var::from_tensor(&draw(if shape.own_input { &own } else { &own[1..] })?)?;
    let probe = draw(&[shape.members, shape.rows, outputs])?;
    Ok((stack, x, probe))
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn close(got: &Tensor, want: &Tensor) -> bool {
    got.dims() == want.dims()
        && numbers(got).iter().zip(numbers(want)).all(|(g, w)| (g - w).abs() <= 1e-9 * w.abs().max(1.0))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn passes_agree_with_candle(shape in shapes()) {
        let (stack, x, probe) = build(&shape).unwrap();
        let want_out = stack.algebra(&x, &stack.parameters).unwrap();
        let want = (&want_out * &probe).unwrap().sum_all().unwrap().backward().unwrap();
        for threads in 1..=3 {
            let stack = stack.clone().with_threads(threads);
            let out = stack.forward(&x).unwrap();
            prop_assert!(close(&out, &want_out));
            let got = (&out * &probe).unwrap().sum_all().unwrap().backward().unwrap();
            prop_assert!(close(got.get(&x).unwrap(), want.get(&x).unwrap()));
            prop_assert!(close(got.get(&stack.parameters).unwrap(), want.get(&stack.parameters).unwrap()));
            prop_assert!(close(&stack.forward_detached(&x).unwrap(), &want_out));
        }
    }

    #[test]
    fn passes_skip_only_rows_without_gradient(shape in shapes(), keep in any::<u16>()) {
        let (stack, x, probe) = build(&shape).unwrap();
        let masks = (0..shape.members * shape.rows).map(|i| f64::from(keep >> (i % 16) & 1)).collect();
        let mask = Tensor::from_vec(masks, (shape.members, shape.rows, 1), &Device::Cpu).unwrap();
        let probe = probe.broadcast_mul(&mask).unwrap();
        let want = (stack.algebra(&x, &stack.parameters).unwrap() * &probe).unwrap();
        let want = want.sum_all().unwrap().backward().unwrap();
        let got = (stack.forward(&x).unwrap() * &probe).unwrap().sum_all().unwrap().backward().unwrap();
        prop_assert!(close(got.get(&x).unwrap(), want.get(&x).unwrap()));
        prop_assert!(close(got.get(&stack.parameters).unwrap(), want.get(&stack.parameters).unwrap()));
        let got = (stack.forward_frozen(&x).unwrap() * &probe).unwrap().sum_all().unwrap().backward().unwrap();
        prop_assert!(close(got.get(&x).unwrap(), want.get(&x).unwrap()));
        prop_assert!(got.get(&stack.parameters).is_none());
    }
}

#[test]
fn backward_is_the_slope_of_forward() {
    for (layer_norm, own_input) in [(false, false), (false, true), (true, false), (true, true)] {
        let shape = Shape { members: 2, rows: 7, widths: vec![5, 13, 9, 3], layer_norm, own_input, seed: 11 };
        let (stack, x, probe) = build(&shape).unwrap();
        let loss = || (stack.forward(&x).unwrap() * &probe).unwrap().sum_all().unwrap();
        let gradients = loss().backward().unwrap();
        for var in [&x, &stack.parameters] {
            let (gradient, start) = (numbers(gradients.get(var).unwrap()), numbers(var));
            for index in (0..start.len()).step_by(3) {
                let at = |offset: f64| {
                    let mut moved = start.clone();
                    moved[index] += offset;
                    var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    loss().to_scalar::<f64>().unwrap()
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((slope - gradient[index]).abs() < 1e-6 * slope.abs().max(1.0), "{slope} {}", gradient[index]);
            }
            var.set(&Tensor::from_vec(start, var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}
